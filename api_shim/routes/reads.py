"""GET one and GET a list of every resource. The rules of visibility are the service's."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any
from uuid import UUID

from api_shim.changes.waiters import Waiters
from api_shim.description import words
from api_shim.routes import outcomes
from api_shim.routes.submissions import instance_id, parent_id
from api_shim.web import query, request_headers
from api_shim.web.batcher import Batcher
from api_shim.web.http import Request, Response, json_response
from api_shim.web.router import Answer, Limit, Parameter, Route
from api_shim.web.threads import Threads
from models.cache.views import Page, View, Views, Wanted
from models.cursor import Cursors
from models.database import Database
from models.errors import Conflict, NotFound
from models.identity.principals import Action, Principal, Reach, permission_needed, reach_of
from models.job import to_json
from models.ledger import Ledger
from models.list_place import place_value
from models.page_query import PageQuery
from models.registry import Registry, Resource


@dataclass(frozen=True, slots=True)
class Place:
    """Where an instance is: what the path of a read names."""

    resource: Resource
    id: UUID
    parent_id: UUID | None


_LONGEST_SEARCH = 255


class Reads:
    """The routes that read instances.

    Args:
        registry: The resources served.
        ledger: Knows which instances are still to come.
        database: Where the lanes are asked about.
        views: Reads lists.
        loads: Reads one instance together with everybody else's (:func:`load_batcher`).
        threads: Where lists and lanes are read.
        waiters: Tell when something changed.
        cursors: Sign the places in a list.
    """

    def __init__(
        self,
        registry: Registry,
        database: Database,
        ledger: Ledger,
        views: Views,
        loads: Batcher[Wanted, View | None],
        threads: Threads,
        waiters: Waiters,
        cursors: Cursors,
    ) -> None:
        self._registry = registry
        self._database = database
        self._ledger = ledger
        self._views = views
        self._loads = loads
        self._threads = threads
        self._waiters = waiters
        self._cursors = cursors

    # ---- one -----------------------------------------------------------------------------

    async def get(self, resource: Resource, request: Request) -> Response:
        """The instance, or 304 where the caller has it already."""
        principal = request.principal
        resource.service.check_role(principal, Action.READ)
        place = Place(resource, instance_id(request, resource), parent_id(request, resource))
        minimum = query.whole_number(request.query, "minVersion", 1, 2**53)
        if minimum is None:
            view = await self._visible(place, principal)
        else:
            wait = request_headers.wait_seconds(request.listed_header(b"prefer"))
            view = await self._at_least(place, principal, minimum, wait or 0)
        if view is None:
            raise resource.service.absent()
        if not resource.type.has_version:
            return json_response(200, view.document, (_PRIVATE,))
        tag = (b"etag", b'"%d"' % view.version)
        if request_headers.matches_any(request.listed_header(b"if-none-match"), view.version):
            return Response(304, b"", (tag, _PRIVATE))
        return json_response(200, view.document, (tag, _PRIVATE))

    async def _visible(self, place: Place, principal: Principal, *, is_fresh: bool = False) -> View | None:
        view = await self._loads.call(Wanted(place.resource.type.name, place.id, is_fresh))
        if view is None or view.parent_id != place.parent_id:
            return None
        owner = {"owner_id": view.owner_id}
        try:
            if place.resource.parent is not None:  # the parent's owner is the part's
                place.resource.parent.service.authorize(principal, Action.READ, owner)
            place.resource.service.authorize(principal, Action.READ, owner)
        except NotFound:  # of a hidden parent, in words that would tell that its part is there
            return None
        return view

    async def _at_least(self, place: Place, principal: Principal, minimum: int, wait: int) -> View | None:
        """The instance at ``minimum`` or later, waited for as long as the caller likes.

        Raises:
            Conflict: It has not come so far yet.
        """
        deadline = time.monotonic() + wait
        kept = await self._visible(place, principal)
        if kept is not None and kept.version >= minimum:
            return kept
        while True:
            # The lane first, the instance second: what is applied in between is then seen.
            is_to_come = await self._threads.call(self._is_to_come, place, principal)
            view = await self._visible(place, principal, is_fresh=True)
            if view is not None and view.version >= minimum:
                return view
            if view is None and not is_to_come:
                return None
            left = deadline - time.monotonic()
            if left <= 0 or self._waiters.is_closed:
                present = "not applied yet" if view is None else f"at version {view.version}"
                raise Conflict(f"The {place.resource.type.singular} is {present}", retry_after=1)
            await self._waiters.next_change(left)

    def _is_to_come(self, place: Place, principal: Principal) -> bool:
        """Whether a job is open on the instance; only the caller's own where foreign ones are hidden."""
        sees_all = _sees_all(place.resource, principal)
        lane = place.resource.type.lane(place.id, place.parent_id)
        with self._database.snapshot() as connection:
            return bool(
                self._ledger.lanes_in_use(connection, [lane], principal_id=None if sees_all else principal.id)
            )

    # ---- a list --------------------------------------------------------------------------

    async def page(self, resource: Resource, request: Request) -> Response:
        """One page: what the caller may see, by a keyset that holds while others write."""
        principal = request.principal
        resource.service.check_role(principal, Action.READ)
        asked = self._page_query(resource, request, principal)
        if resource.parent is not None and asked.parent_id is not None:
            parent = await self._visible(Place(resource.parent, asked.parent_id, None), principal)
            if parent is None:
                raise resource.parent.service.absent()
        page: Page = await self._threads.call(self._views.page, resource, asked)
        next_cursor = None
        if page.last is not None:
            next_cursor = self._cursors.write(_question(resource, request, principal), page.last)
        return json_response(
            200, b'{"items":[%b],"nextCursor":%b}' % (page.items, to_json(next_cursor)), (_PRIVATE,)
        )

    def _page_query(self, resource: Resource, request: Request, principal: Principal) -> PageQuery:
        """What the query asks for."""
        given = request.query
        sort = query.choice(given, "sort", _sorts(resource)) or "createdAt"
        column = resource.type.sorts.get(sort.removeprefix("-"), "created_at")
        after: tuple[Any, UUID] | None = None
        if "cursor" in given:
            value, identifier = self._cursors.read(
                _question(resource, request, principal), given["cursor"], length=2
            )
            after = (place_value(resource.type.table.columns[column].type, value), UUID(identifier))
        return PageQuery(
            limit=query.limit(given),
            sort=column,
            descending=sort.startswith("-"),
            after=after,
            owner_id=None if _sees_all(resource, principal) else principal.id,
            parent_id=parent_id(request, resource),
            status=query.choice(given, "status", _statuses(resource)),
            search=query.words(given, "q", _LONGEST_SEARCH),
        )

    def routes(self) -> Iterator[Route]:
        """The read routes of every resource."""
        for resource in self._registry:
            name, singular = resource.type.name, resource.type.singular
            has_version, has_parent = resource.type.has_version, resource.parent is not None
            permission = f"{name}:{permission_needed(resource.type.permissions, Action.READ)}"
            yield Route(
                method="GET",
                path=f"{outcomes.BASE}/{resource.path}",
                handle=partial(self.page, resource),
                operation_id=words.operation_id("list", name),
                summary=f"List {name}",
                tag=name,
                permission=permission,
                limit=Limit.LIST,
                parameters=_list_parameters(resource),
                answers={200: Answer("One page", f"{name}.Page", ("Cache-Control",))},
                errors=(404,) if has_parent else (),
            )
            yield Route(
                method="GET",
                path=f"{outcomes.BASE}/{resource.instance_path}",
                handle=partial(self.get, resource),
                operation_id=words.operation_id("get", singular),
                summary=f"Read one of {name}",
                tag=name,
                permission=permission,
                limit=Limit.READ,
                parameters=_READ_VERSION if has_version else (),
                answers=_answers(name, has_version=has_version),
                errors=(404, 409) if has_version else (404,),
            )


_READ_VERSION = (words.MIN_VERSION, words.IF_NONE_MATCH, words.PREFER)


def _answers(name: str, *, has_version: bool) -> dict[int, Answer]:
    if not has_version:
        return {200: Answer("The instance", f"{name}.Read", ("Cache-Control",))}
    return {
        200: Answer("The instance", f"{name}.Read", ("ETag", "Cache-Control")),
        304: Answer("You have it already", None, ("ETag",)),
    }


def _sees_all(resource: Resource, principal: Principal) -> bool:
    return reach_of(resource.type.permissions, principal.role, Action.READ) is Reach.ALL


_PRIVATE = (b"cache-control", b"private, no-cache")
"""May be kept by the caller alone, and asked about before it is used."""


def load_batcher(views: Views) -> Batcher[Wanted, View | None]:
    """Reads of single instances that wait at the same moment share one look at the cache and one query."""
    return Batcher("loads", views.load)


def _list_parameters(resource: Resource) -> tuple[Parameter, ...]:
    sort = words.query(
        "sort",
        "The order; `-` reverses it.",
        {"type": "string", "enum": list(_sorts(resource)), "default": "createdAt"},
    )
    parameters = [words.LIMIT, words.CURSOR, sort]
    if resource.type.searched:
        parameters.append(words.SEARCH)
    if statuses := _statuses(resource):
        schema: dict[str, object] = {"type": "string", "enum": list(statuses)}
        parameters.append(words.query("status", "Only those in this status.", schema))
    return tuple(parameters)


def _sorts(resource: Resource) -> tuple[str, ...]:
    return tuple(order for name in resource.type.sorts for order in (name, f"-{name}"))


def _statuses(resource: Resource) -> tuple[str, ...]:
    """The values of the resource's status, where it has one and says which it takes."""
    declared = resource.type.read.model_fields.get("status")
    annotation = declared.annotation if declared is not None else None
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return tuple(str(member.value) for member in annotation)
    return ()


def _question(resource: Resource, request: Request, principal: Principal) -> list[str | None]:
    """What a cursor holds for: this list, in this order, with these filters, to this caller."""
    given = request.query
    parent = request.parameters.get("id")
    place = resource.type.name if parent is None else f"{resource.type.name} of {parent.lower()}"
    return [place, str(principal.id), given.get("sort"), given.get("status"), given.get("q")]
