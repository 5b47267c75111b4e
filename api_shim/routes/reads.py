"""GET one and GET a list of every resource. The rules of visibility are the service's."""

import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from enum import Enum
from functools import partial
from typing import Any
from uuid import UUID

from api_shim.changes.waiters import Waiters
from api_shim.description import words
from api_shim.routes import outcomes
from api_shim.routes.submissions import check_role, instance_id
from api_shim.web import query, request_headers
from api_shim.web.batcher import Batcher
from api_shim.web.http import Request, Response, json_response
from api_shim.web.router import Answer, Limit, Parameter, Route
from api_shim.web.threads import Threads
from models.cursor import Cursors
from models.database import Database
from models.errors import Conflict, NotFound
from models.identity.principals import Action, Principal, Reach, reach_of
from models.ids import lane_key
from models.job import Operation, to_json
from models.ledger import Ledger
from models.registry import Registry, Resource
from models.repository import PageQuery
from models.service import Row

Instance = tuple[str, UUID]
"""Resource name and id."""

_SORTS = {"createdAt": "created_at", "name": "name"}
_LONGEST_SEARCH = 255


class Reads:
    """The routes that read instances.

    Args:
        registry: The resources served.
        database: For lists.
        ledger: Knows which instances are still to come.
        loads: Reads one instance together with everybody else's (:func:`load_batcher`).
        threads: Where lists are read.
        waiters: Tell when something changed.
        cursors: Sign the places in a list.
    """

    def __init__(
        self,
        registry: Registry,
        database: Database,
        ledger: Ledger,
        loads: Batcher[Instance, Row | None],
        threads: Threads,
        waiters: Waiters,
        cursors: Cursors,
    ) -> None:
        self._registry = registry
        self._database = database
        self._ledger = ledger
        self._loads = loads
        self._threads = threads
        self._waiters = waiters
        self._cursors = cursors

    # ---- one -----------------------------------------------------------------------------

    async def get(self, resource: Resource, request: Request) -> Response:
        """The instance, or 304 where the caller has it already."""
        principal = request.principal
        check_role(resource, Operation.READ, principal)
        identifier = instance_id(request, resource)
        minimum = query.whole_number(request.query, "minVersion", 1, 2**53)
        if minimum is None:
            row = await self._visible(resource, identifier, principal)
        else:
            wait = request_headers.wait_seconds(request.listed_header(b"prefer"))
            row = await self._at_least(resource, identifier, principal, minimum, wait or 0)
        if row is None:
            raise NotFound(f"There is no {resource.type.singular} {identifier}")
        tag = (b"etag", b'"%d"' % row["version"])
        if request_headers.matches_any(request.listed_header(b"if-none-match"), row["version"]):
            return Response(304, b"", (tag, _PRIVATE))
        return json_response(200, resource.service.seen(row), (tag, _PRIVATE))

    async def _visible(self, resource: Resource, identifier: UUID, principal: Principal) -> Row | None:
        row = await self._loads.call((resource.type.name, identifier))
        if row is not None:
            resource.service.authorize(principal, Action.READ, row)
        return row

    async def _at_least(
        self, resource: Resource, identifier: UUID, principal: Principal, minimum: int, wait: int
    ) -> Row | None:
        """The instance at ``minimum`` or later, waited for as long as the caller likes.

        Raises:
            Conflict: It has not come so far yet.
        """
        deadline = time.monotonic() + wait
        while True:
            # The lane first, the instance second: what is applied in between is then seen.
            is_to_come = await self._threads.call(self._is_to_come, resource, identifier, principal)
            row = await self._visible(resource, identifier, principal)
            if row is not None and row["version"] >= minimum:
                return row
            if row is None and not is_to_come:
                return None
            left = deadline - time.monotonic()
            if left <= 0 or self._waiters.is_closed:
                present = "not applied yet" if row is None else f"at version {row['version']}"
                raise Conflict(f"The {resource.type.singular} is {present}", retry_after=1)
            await self._waiters.next_change(left)

    def _is_to_come(self, resource: Resource, identifier: UUID, principal: Principal) -> bool:
        """Whether a job is open on the instance; only the caller's own where foreign ones are hidden."""
        sees_all = reach_of(resource.type.permissions, principal.role, Action.READ) is Reach.ALL
        lane = lane_key(resource.type.name, identifier)
        with self._database.snapshot() as connection:
            return bool(
                self._ledger.lanes_in_use(connection, [lane], principal_id=None if sees_all else principal.id)
            )

    # ---- a list --------------------------------------------------------------------------

    async def page(self, resource: Resource, request: Request) -> Response:
        """One page: what the caller may see, by a keyset that holds while others write."""
        principal = request.principal
        check_role(resource, Operation.READ, principal)
        page = self._page_query(resource, request, principal)
        rows = await self._threads.call(self._read_page, resource, page)
        next_cursor = None
        if len(rows) > page.limit - 1:
            rows.pop()
            position = (_text(rows[-1][page.sort]), str(rows[-1]["id"]))
            next_cursor = self._cursors.write(_question(resource, request, principal), position)
        seen = b",".join(resource.service.seen(row) for row in rows)
        return json_response(
            200, b'{"items":[%b],"nextCursor":%b}' % (seen, to_json(next_cursor)), (_PRIVATE,)
        )

    def _read_page(self, resource: Resource, page: PageQuery) -> list[Row]:
        with self._database.snapshot() as connection:
            return resource.repository.page(connection, page)

    def _page_query(self, resource: Resource, request: Request, principal: Principal) -> PageQuery:
        """What the query asks for, one item more than the page so that a next one is known of."""
        given = request.query
        sort = query.choice(given, "sort", _sorts(resource)) or "createdAt"
        column = _SORTS[sort.removeprefix("-")]
        sees_all = reach_of(resource.type.permissions, principal.role, Action.READ) is Reach.ALL
        after: tuple[Any, UUID] | None = None
        if "cursor" in given:
            value, identifier = self._cursors.read(
                _question(resource, request, principal), given["cursor"], length=2
            )
            after = (datetime.fromisoformat(value) if column == "created_at" else value, UUID(identifier))
        return PageQuery(
            limit=query.limit(given) + 1,
            sort=column,
            descending=sort.startswith("-"),
            after=after,
            owner_id=None if sees_all else principal.id,
            status=query.choice(given, "status", _statuses(resource)),
            search=query.words(given, "q", _LONGEST_SEARCH),
        )

    def routes(self) -> Iterator[Route]:
        """The read routes of every resource."""
        for resource in self._registry:
            name, singular = resource.type.name, resource.type.singular
            path = f"{outcomes.BASE}/{name}"
            yield Route(
                method="GET",
                path=path,
                handle=partial(self.page, resource),
                operation_id=f"list_{name}".replace("-", "_"),
                summary=f"List {name}",
                tag=name,
                permission=f"{name}:read",
                limit=Limit.LIST,
                parameters=_list_parameters(resource),
                answers={200: Answer("One page", f"{name}.Page", ("Cache-Control",))},
            )
            yield Route(
                method="GET",
                path=path + "/{id}",
                handle=partial(self.get, resource),
                operation_id=f"get_{singular}".replace("-", "_"),
                summary=f"Read one of {name}",
                tag=name,
                permission=f"{name}:read",
                limit=Limit.READ,
                parameters=(
                    words.MIN_VERSION,
                    words.IF_NONE_MATCH,
                    words.PREFER,
                ),
                answers={
                    200: Answer("The instance", f"{name}.Read", ("ETag", "Cache-Control")),
                    304: Answer("You have it already", None, ("ETag",)),
                },
                errors=(404, 409),
            )


_PRIVATE = (b"cache-control", b"private, no-cache")
"""May be kept by the caller alone, and asked about before it is used."""


def load_batcher(database: Database, registry: Registry) -> Batcher[Instance, Row | None]:
    """Reads of single instances that wait at the same moment share one query for each resource."""

    def load(batch: Sequence[Instance]) -> Sequence[Row | None]:
        found: dict[Instance, Row] = {}
        with database.snapshot() as connection:
            for name in {resource for resource, _ in batch}:
                ids = list({identifier for resource, identifier in batch if resource == name})
                rows = registry[name].repository.load_many(connection, ids)
                found |= {(name, identifier): row for identifier, row in rows.items()}
        return [found.get(instance) for instance in batch]

    return Batcher("loads", load)


def _list_parameters(resource: Resource) -> tuple[Parameter, ...]:
    sort = words.query(
        "sort",
        "The order; `-` reverses it.",
        {"type": "string", "enum": list(_sorts(resource)), "default": "createdAt"},
    )
    parameters = [words.LIMIT, words.CURSOR, sort]
    if any(name in resource.type.table.columns for name in resource.type.searchable):
        parameters.append(words.SEARCH)
    if statuses := _statuses(resource):
        schema: dict[str, object] = {"type": "string", "enum": list(statuses)}
        parameters.append(words.query("status", "Only those in this status.", schema))
    return tuple(parameters)


def _sorts(resource: Resource) -> tuple[str, ...]:
    names = [name for name, column in _SORTS.items() if column in resource.type.table.columns]
    return tuple(order for name in names for order in (name, f"-{name}"))


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
    return [resource.type.name, str(principal.id), given.get("sort"), given.get("status"), given.get("q")]


def _text(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
