"""Routes: which handler serves a method and a path, and what OpenAPI says of it. No handlers here."""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from pydantic import BaseModel

from api_shim.web.http import Request, Response
from models.errors import MethodNotAllowed, NotFound
from models.quotas import Limit as Limit

Handler = Callable[[Request], Awaitable[Response]]
JsonSchema = Mapping[str, Any]
Described = str | type[BaseModel]
"""A body as OpenAPI describes it: the name of a component schema, or the model that becomes one."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A query parameter or request header, as OpenAPI describes it."""

    name: str
    place: str
    description: str
    schema: JsonSchema


@dataclass(frozen=True, slots=True)
class Answer:
    """One documented answer.

    Attributes:
        schema: Of the body; None where there is none.
        headers: Names of response headers, described in ``words.py``.
    """

    description: str
    schema: Described | None = None
    headers: tuple[str, ...] = ()
    media_type: str = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One operation of the API: how it is reached, who serves it, how it is described.

    Attributes:
        path: Literal segments and ``{parameter}`` ones.
        is_public: Needs no token.
        permission: ``resource:action``, or who may (``own``, ``admin``); documentation, and never the check.
        limit: The quota that it draws on; None for none.
        body: Schema of the request body, by media type.
        body_is_optional: The request may come without one.
        errors: Statuses of the problems that it may answer, beyond those every route has.
    """

    method: str
    path: str
    handle: Handler
    operation_id: str
    summary: str
    tag: str
    is_public: bool = False
    permission: str | None = None
    limit: Limit | None = None
    parameters: tuple[Parameter, ...] = ()
    body: Mapping[str, Described] = field(default_factory=dict)
    body_is_optional: bool = False
    answers: Mapping[int, Answer] = field(default_factory=dict)
    errors: tuple[int, ...] = ()
    query: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        names = frozenset(one.name for one in self.parameters if one.place == "query")
        object.__setattr__(self, "query", names)


@dataclass(slots=True)
class _Node:
    literals: dict[str, "_Node"] = field(default_factory=dict)
    parameter: tuple[str, "_Node"] | None = None
    methods: dict[str, Route] = field(default_factory=dict)


class Router:
    """A tree of path segments. Literal segments win over parameters; a trailing slash is another path.

    Args:
        routes: Every operation; two may not share method and path.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes = tuple(routes)
        self._root = _Node()
        self._literal: dict[str, dict[str, Route]] = {}
        for route in self._routes:
            methods = self._grow(route.path).methods
            if route.method in methods:
                raise ValueError(f"{route.method} {route.path} is routed twice")
            methods[route.method] = route
            if "{" not in route.path:
                self._literal[route.path] = methods

    def __iter__(self) -> Iterator[Route]:
        return iter(self._routes)

    def find(self, method: str, path: str) -> tuple[Route, Mapping[str, str]]:
        """The route and its path parameters, percent-decoded. HEAD is served as GET.

        Raises:
            NotFound: Nothing has this path.
            MethodNotAllowed: Something has, for other methods.
        """
        parameters: Mapping[str, str] = {}
        methods = self._literal.get(path)
        if methods is None:
            methods, parameters = self._walk(path)
        route = methods.get(method) or (methods.get("GET") if method == "HEAD" else None)
        if route is None:
            allow = sorted({*methods, *(["HEAD"] if "GET" in methods else [])})
            raise MethodNotAllowed(f"{', '.join(allow)} can be used here", allow=allow)
        return route, parameters

    def _grow(self, path: str) -> _Node:
        node = self._root
        for segment in path.split("/")[1:]:
            if segment.startswith("{"):
                if node.parameter is None:
                    node.parameter = (segment[1:-1], _Node())
                node = node.parameter[1]
            else:
                node = node.literals.setdefault(segment, _Node())
        return node

    def _walk(self, path: str) -> tuple[dict[str, Route], dict[str, str]]:
        node, parameters = self._root, {}
        for raw in path.split("/")[1:]:
            segment = unquote(raw) if "%" in raw else raw
            if (literal := node.literals.get(segment)) is not None:
                node = literal
            elif node.parameter is not None and segment:
                name, node = node.parameter
                parameters[name] = segment
            else:
                raise NotFound("There is nothing at this path")
        if not node.methods:
            raise NotFound("There is nothing at this path")
        return node.methods, parameters
