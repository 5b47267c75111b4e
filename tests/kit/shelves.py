"""A resource for tests that has a column of each type that a list may be sorted by.

Its table is taken out of the shared metadata again; who asks for it makes it.
"""

import datetime
import enum
from decimal import Decimal
from typing import Any
from uuid import UUID

from pydantic import create_model
from sqlalchemy import (
    CHAR,
    REAL,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Date,
    DateTime,
    Enum,
    Float,
    Integer,
    Numeric,
    SmallInteger,
    String,
    Text,
    Time,
    Uuid,
)
from sqlalchemy.dialects.postgresql import UUID as PG_UUID

from models.ids import new_id
from models.resource_type import ResourceType, resource_table
from models.schema import Schema
from models.tables import metadata

NOON = datetime.datetime(2026, 2, 28, 12, 0, 0, 1, datetime.UTC)
EAST = datetime.timezone(datetime.timedelta(hours=5, minutes=30))


class Size(enum.Enum):
    """In an order that is not the alphabet's."""

    small = "small"
    large = "large"


SORTED = {
    "word": (String(40), ["b", "a", "B", "a", "0, or 'more'"]),
    "story": (Text(), ["x" * 5_000 + end for end in ("b", "a", "c", "a")] + ["short"]),
    "padded": (CHAR(9), ["b", "a", "c", "a", "b"]),
    "small": (SmallInteger(), [3, -7, 10, 3, 0]),
    "number": (Integer(), [3, -7, 10, 3, 0]),
    "big": (BigInteger(), [3, -(2**62), 2**62, 2**62 + 1, 2**62]),
    "price": (Numeric(12, 2), [Decimal("12.50"), Decimal(-3), Decimal(9), Decimal("12.50"), Decimal("0.10")]),
    "exact": (
        Numeric(),
        [Decimal("0.1"), Decimal("1e-30"), Decimal("2e-30"), Decimal("0.1"), Decimal("1e40")],
    ),
    "weight": (Float(), [0.1, 1 / 3, -2e300, 0.1, 1e-300]),
    "rough": (REAL(), [0.1, 0.2, 0.3, 0.1, 0.7]),
    "done": (Boolean(), [True, False, True, False, False]),
    "due_on": (Date(), [NOON.date() + datetime.timedelta(n) for n in (3, -1, 10, 3, 0)]),
    "at": (DateTime(timezone=True), [NOON + datetime.timedelta(microseconds=n) for n in (3, -1, 10, 3, 0)]),
    "local": (DateTime(), [NOON.replace(tzinfo=None) + datetime.timedelta(n) for n in (3, -1, 10, 3, 0)]),
    "opens": (Time(), [datetime.time(n, 30, 0, n) for n in (9, 8, 23, 9, 0)]),
    "closes": (Time(timezone=True), [datetime.time(n, 30, 0, n, tzinfo=EAST) for n in (9, 8, 23, 9, 0)]),
    "key": (Uuid(), [UUID(int=n) for n in (3, 2**127, 10, 3, 0)]),
    "key_text": (PG_UUID(as_uuid=False), [str(UUID(int=n)) for n in (3, 2**127, 10, 3, 0)]),
    "size": (Enum(Size, name="size"), [Size.large, Size.small, Size.large, Size.small, Size.small]),
    "said": (Enum(Size, native_enum=False), [Size.large, Size.small, Size.large, Size.small, Size.small]),
    "state": (Enum("open", "at", "done", name="state"), ["done", "open", "at", "open", "done"]),
}
"""Columns: their types, and five values each, some of them shared."""

TABLE = resource_table(
    "shelves",
    *(Column(name, kind, nullable=False, default=values[0]) for name, (kind, values) in SORTED.items()),
)
metadata.remove(TABLE)


class Shelf(Schema):
    """No body: the rows are put there past the jobs."""


RESOURCE = ResourceType(
    name="shelves",
    table=TABLE,
    create=Shelf,
    update=Shelf,
    read=create_model("ShelfRead", __base__=Schema, id=(UUID, ...), **dict.fromkeys(SORTED, (Any, ...))),
    sortable=tuple(SORTED),
    is_cached=False,
)


def fill(connection: Connection, owner_id: UUID) -> None:
    """Put five shelves there."""
    TABLE.create(connection)
    for number in range(5):
        values = {name: values[number] for name, (_, values) in SORTED.items()}
        connection.execute(TABLE.insert().values(id=new_id(), owner_id=owner_id, **values))
