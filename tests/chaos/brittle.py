"""Brittles: a resource of the harness' own whose instances cannot be made until their job is redriven mended.

What is ``isBroken`` fails as an unreachable third party would, again and again, and its job ends dead. The
merge patch of a redrive mends it.
"""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from pydantic import JsonValue
from sqlalchemy import Boolean, Column, text
from sqlalchemy.dialects.postgresql import JSONB

from models.errors import Transient
from models.resource_type import ResourceType, resource_table
from models.retry import RetryPolicy
from models.schema import Schema
from models.service import ResourceService, Row
from models.tables import metadata

NAME = "brittles"

TABLE = resource_table(
    NAME,
    Column("metadata", JSONB),
    Column("is_broken", Boolean, nullable=False, server_default=text("false")),
)
metadata.remove(TABLE)  # no other test's migration shall miss it


class BrittleUpdate(Schema):
    """Body of a PUT; what a PATCH must lead to."""

    metadata: dict[str, JsonValue] | None = None
    is_broken: bool = False


class BrittleCreate(BrittleUpdate):
    """Body of a POST."""


class BrittleRead(BrittleUpdate):
    """What callers see."""

    id: UUID
    version: int
    owner_id: UUID
    created_at: datetime
    updated_at: datetime


class BrittleService(ResourceService):
    """Holds back what is broken."""

    def check(self, before: Row | None, after: Row) -> None:
        """Fail as what passes by itself does, or may."""
        if _is_broken(after):
            raise Transient("it is broken")


def _is_broken(row: Any) -> bool:
    return bool(row["is_broken"])


RESOURCE = ResourceType(
    name=NAME,
    table=TABLE,
    create=BrittleCreate,
    update=BrittleUpdate,
    read=BrittleRead,
    service=BrittleService,
    searchable=(),
    sortable=("created_at",),
    retry=RetryPolicy(max_attempts=2, base=timedelta(seconds=0.2)),
)
