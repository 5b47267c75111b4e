"""What callers read, through the cache: single instances and pages of lists. Who may see them: the service's.

A view holds what its caller needs and no more: no column that the read schema does not show, but for
the owner and the parent, which are asked about after every hit.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import NamedTuple
from uuid import UUID

import orjson
from sqlalchemy import Connection

from models import failpoints, metrics
from models.cache.cache import Cache, Entry, Look, Mark
from models.cache.notices import tell
from models.cache.redis_cache import entry_key, list_key
from models.database import Database
from models.errors import Invalid
from models.failpoints import Step
from models.list_place import LongText, place_text
from models.page_query import PageQuery
from models.registry import Registry, Resource
from models.resource_type import ResourceType
from models.service import Row


@dataclass(frozen=True, slots=True)
class View:
    """An instance as its readers see it.

    Attributes:
        owner_id: Whose it is.
        parent_id: Whose part it is, if anything's.
        version: Grows with every change, also through a deletion.
        document: JSON text by the read schema.
    """

    owner_id: UUID
    parent_id: UUID | None
    version: int
    document: bytes


class Wanted(NamedTuple):
    """An instance to be read.

    Attributes:
        resource: Plural name.
        id: Of the instance.
        is_fresh: Read it from the database, whatever is kept.
    """

    resource: str
    id: UUID
    is_fresh: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a list.

    Attributes:
        items: JSON texts by the read schema, joined by commas.
        last: Sort value and id of the last item, where more follow.
    """

    items: bytes
    last: tuple[str, str] | None


@dataclass(slots=True)
class Changes:
    """What a transaction changed, for the cache to be told.

    Attributes:
        views: By resource and id; None where there is none any more, or only PostgreSQL knows how it looks.
        lists: By resource, and whose or in which parent; None for everybody's.
    """

    views: dict[tuple[str, UUID], View | None] = field(default_factory=dict)
    lists: set[tuple[str, UUID | None]] = field(default_factory=set)

    def put(self, resource: ResourceType, row: Row, document: bytes) -> None:
        """An instance was made or changed; ``document`` is how it is seen."""
        if resource.is_cached:
            view = _view(resource, row, document) if resource.reads_as_written else None
            self.views[(resource.name, row["id"])] = view
            self._touch_lists(resource, row)

    def drop(self, resource: ResourceType, row: Row) -> None:
        """An instance was deleted."""
        if resource.is_cached:
            self.views[(resource.name, row["id"])] = None
            self._touch_lists(resource, row)

    def drop_parts(self, resource: ResourceType, ids: Iterable[UUID], parents: Iterable[UUID]) -> None:
        """Parts were deleted with their parents."""
        if resource.is_cached:
            self.views.update(((resource.name, one), None) for one in ids)
            self.lists.update((resource.name, parent) for parent in parents)

    def _touch_lists(self, resource: ResourceType, row: Row) -> None:
        if resource.parent_column is not None:
            self.lists.add((resource.name, row[resource.parent_column]))
        else:
            self.lists |= {(resource.name, row["owner_id"]), (resource.name, None)}


class Views:
    """Reads through the cache, and tells it of changes.

    Args:
        database: The truth.
        registry: The resources.
        cache: What is read often.
    """

    def __init__(self, database: Database, registry: Registry, cache: Cache) -> None:
        self._database = database
        self._registry = registry
        self._cache = cache

    # ---- reading -------------------------------------------------------------------------

    def load(self, batch: Sequence[Wanted]) -> list[View | None]:
        """Instances, in the order of ``batch``: one look at the cache, and one query a resource for the rest.

        Raises:
            DatabaseUnavailable: Something is not kept, and the database is away.
        """
        keys = {
            one: entry_key(one.resource, one.id)
            for one in batch
            if not one.is_fresh and self._registry[one.resource].type.is_cached
        }
        look = self._cache.look(list(dict.fromkeys(keys.values()))) if keys else Look()
        views: dict[Wanted, View | None] = {}
        for one, key in keys.items():
            entry = look.found.get(key)
            view = _read(self._registry[one.resource].type, entry) if entry is not None else None
            if view is not None:
                views[one] = view
            outcome = "hit" if view is not None else "miss" if key in look.leased else "bypass"
            metrics.CACHE_READS.labels("instance", outcome).inc()
        missing = [one for one in batch if one not in views]
        if missing:
            loaded = self._load_rows(missing)
            views |= loaded
            entries = {
                keys[one]: _entry(self._registry[one.resource].type, view)
                for one, view in loaded.items()
                if view is not None and keys.get(one) in look.leased
            }
            self._cache.fill(look, entries)
        return [views[one] for one in batch]

    def _load_rows(self, wanted: Sequence[Wanted]) -> dict[Wanted, View | None]:
        by_resource: dict[str, set[UUID]] = defaultdict(set)
        for one in wanted:
            by_resource[one.resource].add(one.id)
        found: dict[tuple[str, UUID], View] = {}
        with self._database.snapshot() as connection:
            for name, ids in by_resource.items():
                resource = self._registry[name]
                rows = resource.repository.load_many(connection, list(ids))
                found |= {(name, key): view_of(resource, row) for key, row in rows.items()}
        return {one: found.get((one.resource, one.id)) for one in wanted}

    def page(self, resource: Resource, query: PageQuery) -> Page:
        """One page of a list.

        Raises:
            Invalid: It begins after an item whose long text was changed or deleted meanwhile; or ends at one
                that has nothing to sort by, though such columns ought never to be null.
            DatabaseUnavailable: It is not kept, and the database is away.
        """
        kind = resource.type
        if not kind.is_cached:
            return self._read_page(resource, query)
        question = _digest(kind, query)
        whose = query.parent_id if kind.parent_column is not None else query.owner_id
        look = self._cache.look_at_list(list_key(kind.name, whose), question)
        outcome = "hit" if look.page is not None else "miss" if look.generation else "bypass"
        metrics.CACHE_READS.labels("list", outcome).inc()
        if look.page is not None:
            head, _, items = look.page.partition(b"\n")
            last = orjson.loads(head)
            return Page(items, (last[0], last[1]) if last else None)
        page = self._read_page(resource, query)
        if look.generation:
            self._cache.fill_list(look, question, b"%b\n%b" % (orjson.dumps(page.last), page.items))
        return page

    def _read_page(self, resource: Resource, query: PageQuery) -> Page:
        with self._database.snapshot() as connection:
            query = _with_its_text(connection, resource, query)
            rows = resource.repository.page(connection, replace(query, limit=query.limit + 1))
        last = None
        if len(rows) > query.limit:  # one more than the page: a next one is known of
            rows.pop()
            kind, value = resource.type.table.columns[query.sort].type, rows[-1][query.sort]
            if value is None:
                raise Invalid(
                    f"Not every {resource.type.singular} has what this list is sorted by: sort by another"
                )
            last = (place_text(kind, value), str(rows[-1]["id"]))
        return Page(b",".join(resource.service.seen(row) for row in rows), last)

    # ---- changing ------------------------------------------------------------------------

    def mark(self, connection: Connection, changes: Changes) -> Mark:
        """Tell the cache what is about to be committed: as the last thing before the commit.

        Args:
            connection: The transaction. Where the cache is not reached, it tells those who reach it.
            changes: What it changed.
        """
        keys = (entry_key(name, identifier) for name, identifier in changes.views)
        step = Step.MARK_CACHE if changes.views else None
        failpoints.before(step)
        mark = self._cache.mark(keys, (list_key(name, whose) for name, whose in changes.lists))
        failpoints.after(step)
        tell(connection, mark)
        return mark

    def settle(self, mark: Mark, changes: Changes) -> None:
        """Tell it that the commit is done. Not called where it failed: nobody knows what came of it."""
        step = Step.SETTLE_CACHE if changes.views else None
        failpoints.before(step)
        self._cache.settle(
            mark,
            {
                entry_key(name, identifier): _entry(self._registry[name].type, view)
                for (name, identifier), view in changes.views.items()
                if view is not None
            },
        )
        failpoints.after(step)


def _with_its_text(connection: Connection, resource: Resource, query: PageQuery) -> PageQuery:
    """The query with the sort value that was too long for its cursor, where it was.

    Raises:
        Invalid: The item that the page before ended at has it no longer: nobody knows where that was.
    """
    if query.after is None or not isinstance(query.after[0], LongText):
        return query
    wanted, last = query.after
    row = resource.repository.load_many(connection, [last]).get(last)
    if row is None or row[query.sort] is None or not wanted.is_of(row[query.sort]):
        raise Invalid("What the page before ended at was changed or deleted: begin without the cursor")
    return replace(query, after=(row[query.sort], last))


def view_of(resource: Resource, row: Row) -> View:
    """How an instance is seen."""
    return _view(resource.type, row, resource.service.seen(row))


def _view(kind: ResourceType, row: Row, document: bytes) -> View:
    parent = row[kind.parent_column] if kind.parent_column is not None else None
    return View(row["owner_id"], parent, row["version"], document)


def _entry(kind: ResourceType, view: View) -> Entry:
    head = orjson.dumps([kind.read_fingerprint, view.owner_id, view.parent_id])
    return Entry(view.version, head + b"\n" + view.document)


def _read(kind: ResourceType, entry: Entry) -> View | None:
    """The view in an entry; None where another release wrote it, with another read schema."""
    head, _, document = entry.payload.partition(b"\n")
    fingerprint, owner_id, parent_id = orjson.loads(head)
    if fingerprint != kind.read_fingerprint:
        return None
    return View(UUID(owner_id), UUID(parent_id) if parent_id else None, entry.version, document)


def _digest(kind: ResourceType, query: PageQuery) -> str:
    asked = f"{kind.read_fingerprint} {query!r}"
    return blake2b(asked.encode(), digest_size=16).hexdigest()
