"""What a list of instances asks for, and the statements that answer it. Runs none.

Every list is read from an index: a keyset that is one row comparison, and an order that runs one way in
all its columns, are one range of ``(owner_id, created_at, id)`` and its like. That must hold for the plan
that PostgreSQL keeps for a prepared statement too. So the limit is a literal (of an unknown one the
planner expects a tenth of the table, and sorts that), and so is the status (of which there are few, some
of them rare).

A search has two plans, and which one is right depends on how many it finds: few are best found through
the trigram index and sorted, many are best read in order until the page is full. The planner cannot
know (it believes in no selectivity below 1 in 10,000, and guesses where it keeps a plan), so it is tried
out: :func:`few_found` stops at :data:`FEW`, and tells where it had to.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Select,
    bindparam,
    cast,
    false,
    func,
    literal,
    or_,
    select,
    tuple_,
)

from models.resource_type import ResourceType

FEW = 1000
"""As many matches are sorted for a page; where there are more, one is met often enough in any order."""

_Holds = Callable[[ColumnElement[str], str], ColumnElement[bool]]
"""Whether a text holds another. Lower case is the database's on both sides: Python's rules differ."""

_WILDCARD = re.compile(r"([\\%_])")
_TRIGRAM = re.compile(r"[^\W_]{3}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PageQuery:
    """A page of a list.

    Attributes:
        sort: Column name; ``descending`` says which way. The id breaks ties.
        after: Sort value and id of the last item of the page before; see ``models/list_place.py``.
        owner_id: Only this owner's; None for everybody's.
        parent_id: Only parts of this parent.
        search: Literal, case-insensitive substring.
    """

    limit: int = 20
    sort: str = "created_at"
    descending: bool = False
    after: tuple[Any, UUID] | None = None
    owner_id: UUID | None = None
    parent_id: UUID | None = None
    status: str | None = None
    search: str | None = None


def in_order(resource: ResourceType, query: PageQuery) -> Select[Any]:
    """The page, read along the index of its order."""
    table = resource.table
    found = select(table).where(*_conditions(resource, query, _contains))
    return _page(found, table.columns[query.sort], table.c.id, query)


def few_found(resource: ResourceType, query: PageQuery) -> Select[Any]:
    """The page out of the first :data:`FEW` matches, and one, in whatever order they are found.

    The last column is how many that were: the page is right unless they are more than :data:`FEW`.
    """
    # Without three letters or digits in a row a trigram index would be read as a whole.
    holds = _contains if _TRIGRAM.search(query.search or "") is None else _is_like
    found = select(resource.table).where(*_conditions(resource, query, holds)).cte("found")
    # Planned as if all were wanted, in no order: by the trigram index, not along the page's order.
    found = found.prefix_with("MATERIALIZED")
    few = select(found).limit(_literal(FEW + 1)).subquery("few")
    counted = select(few, func.count().over().label("found_count"))
    return _page(counted, few.columns[query.sort], few.c.id, query)


def _page(
    found: Select[Any], key: ColumnElement[Any], identifier: ColumnElement[UUID], query: PageQuery
) -> Select[Any]:
    order = (key.desc(), identifier.desc()) if query.descending else (key, identifier)
    return found.order_by(*order).limit(_literal(query.limit))


def _conditions(resource: ResourceType, query: PageQuery, holds: _Holds) -> list[ColumnElement[bool]]:
    columns = resource.table.columns
    wanted: list[ColumnElement[bool]] = []
    if query.owner_id is not None:
        wanted.append(columns["owner_id"] == query.owner_id)
    if query.parent_id is not None and resource.parent_column is not None:
        wanted.append(columns[resource.parent_column] == query.parent_id)
    if query.status is not None:
        wanted.append(columns["status"] == _literal(query.status))
    if query.search is not None:
        wanted.append(or_(false(), *(holds(columns[name], query.search) for name in resource.searched)))
    if query.after is not None:
        key, identifier = columns[query.sort], columns["id"]
        value, last = query.after
        # Of the column's own type: a REAL is else compared as a double, which it seldom equals.
        place = tuple_(cast(literal(value, key.type), key.type), literal(last, identifier.type))
        here = tuple_(key, identifier)
        wanted.append(here < place if query.descending else here > place)
    return wanted


def _contains(column: ColumnElement[str], search: str) -> ColumnElement[bool]:
    """As the planner takes for likely, and looks for in no index."""
    return func.strpos(func.lower(column), func.lower(search)) > 0


def _is_like(column: ColumnElement[str], search: str) -> ColumnElement[bool]:
    """The same, as trigram indexes serve it."""
    literally = _WILDCARD.sub(r"\\\1", search)
    return func.lower(column).like(func.lower(f"%{literally}%"))


def _literal(value: int | str) -> BindParameter[Any]:
    """Known to the planner; escaped by SQLAlchemy."""
    return bindparam(None, value, literal_execute=True)
