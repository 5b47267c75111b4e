"""The place of an item in a list survives its way through a cursor, whatever it is sorted by."""

import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Column, Date, DateTime, Integer, Numeric, String, Uuid

from models.page_query import place_text, place_value
from models.resource_type import ResourceType, resource_table
from models.schema import Schema
from models.tables import metadata


class Parcel(Schema):
    """A body."""


NOON = datetime.datetime(2026, 2, 28, 12, 0, 0, 1, datetime.UTC)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (String, "0, or 'more'"),
        (Integer, -7),
        (Numeric, Decimal("12.50")),
        (Date, NOON.date()),
        (DateTime(timezone=True), NOON),
        (Uuid, UUID(int=7)),
    ],
)
def test_sort_value_comes_back_as_it_went(kind: Any, value: Any) -> None:
    table = resource_table("parcels", Column("value", kind, nullable=False, default=value))
    metadata.remove(table)
    declared = ResourceType(name="parcels", table=table, create=Parcel, update=Parcel, read=Parcel)
    assert place_value(declared, "value", place_text(value)) == value
