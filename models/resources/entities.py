"""Entities: the built-in resource, with a status that moves one way."""

import re
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, BaseModel, Field, JsonValue, field_validator
from sqlalchemy import (
    CheckConstraint,
    Column,
    Index,
    String,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.schema import conv

from models.errors import Conflict
from models.resource_type import ResourceType, resource_table
from models.schema import Schema
from models.service import ResourceService, Row


class Status(StrEnum):
    """Where an entity stands."""

    DRAFT = "DRAFT"
    ACTIVE = "ACTIVE"
    INACTIVE = "INACTIVE"
    ARCHIVED = "ARCHIVED"


TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.DRAFT: frozenset({Status.ACTIVE, Status.ARCHIVED}),
    Status.ACTIVE: frozenset({Status.INACTIVE, Status.ARCHIVED}),
    Status.INACTIVE: frozenset({Status.ACTIVE, Status.ARCHIVED}),
    Status.ARCHIVED: frozenset(),
}
"""Which status may follow which; staying is always allowed."""

TABLE = resource_table(
    "entities",
    Column("name", String(255), nullable=False),
    Column("description", Text),
    Column("status", String(16), nullable=False, server_default=text("'DRAFT'")),
    Column("metadata", JSONB),
    CheckConstraint(f"status IN ({', '.join(repr(str(s)) for s in Status)})", name=conv("chk_status")),
)
Index("idx_entities_list_by_name", TABLE.c.owner_id, TABLE.c.name, TABLE.c.id)
# Of those who see everybody's. An owner's list by status is short enough to be filtered.
Index("idx_entities_list_all", TABLE.c.created_at, TABLE.c.id)
Index("idx_entities_list_all_by_name", TABLE.c.name, TABLE.c.id)
Index("idx_entities_list_all_by_status", TABLE.c.status, TABLE.c.created_at, TABLE.c.id)


NAME_PATTERN = (
    r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f\u2028\u2029]*$"
)
"""What :func:`clean_name` lets pass, for those who read the schema."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def clean_name(name: str) -> str:
    """Refuse what a person could not read."""
    if not name.strip():
        raise ValueError("must not be blank")
    if _CONTROL.search(name):
        raise ValueError("must not hold control characters")
    return name


Name = Annotated[
    str, AfterValidator(clean_name), Field(min_length=1, json_schema_extra={"pattern": NAME_PATTERN})
]
"""Text that names something; a patch meets the rule at the door, as a validator of the schema would not."""


class EntityUpdate(Schema):
    """Body of a PUT; what a PATCH must lead to."""

    name: Name = Field(max_length=255, examples=["Ada's order"])
    description: str | None = Field(None, max_length=10_000)
    status: Status = Status.DRAFT
    metadata: dict[str, JsonValue] | None = None


class EntityCreate(EntityUpdate):
    """Body of a POST."""

    @field_validator("status")
    @classmethod
    def _not_archived(cls, status: Status) -> Status:
        if status is Status.ARCHIVED:
            raise ValueError("a new entity is DRAFT, ACTIVE or INACTIVE")
        return status


class EntityRead(Schema):
    """What callers see."""

    id: UUID
    name: str
    description: str | None
    status: Status
    metadata: dict[str, JsonValue] | None
    version: int
    owner_id: UUID
    created_at: datetime
    updated_at: datetime


class EntityService(ResourceService):
    """Keeps the status to its legal moves."""

    def check(self, before: Row | None, after: Row) -> None:
        """Refuse an illegal status transition with 409."""
        if before is None or before["status"] == after["status"]:
            return
        old, new = Status(before["status"]), Status(after["status"])
        if new not in TRANSITIONS[old]:
            allowed = ", ".join(sorted(TRANSITIONS[old])) or "nothing: it is final"
            raise Conflict(f"The status cannot go from {old} to {new}; from {old} it can go to {allowed}")

    def replaced(self, before: Row, document: BaseModel) -> dict[str, Any]:
        """A PUT without a status keeps it."""
        values = document.model_dump()
        if "status" not in document.model_fields_set:
            values["status"] = before["status"]
        return values


RESOURCE = ResourceType(
    name="entities",
    table=TABLE,
    create=EntityCreate,
    update=EntityUpdate,
    read=EntityRead,
    service=EntityService,
)
