"""A resource for tests with a member that is never shown and whose name does not tell that it is secret.

Its rules are such as no sealed text keeps.
Its table is taken out of the shared metadata again, as that of ``tickets`` is.
"""

from datetime import datetime
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid4

from pydantic import Field, field_validator
from sqlalchemy import Column, String, Text

from models.resource_type import ResourceType, resource_table
from models.schema import Schema
from models.service import ResourceService
from models.tables import metadata

TABLE = resource_table(
    "lockers",
    Column("label", String(40), nullable=False),
    Column("pin_digest", Text, nullable=False),
    Column("word", Text),
    Column("salt", Text),
)
metadata.remove(TABLE)


def _pin(default: Any) -> Any:
    return Field(default, alias="pin", min_length=4, max_length=8, json_schema_extra={"writeOnly": True})


class LockerCreate(Schema):
    """Body of a POST."""

    label: str = Field(min_length=1, max_length=40)
    pin_digest: str = _pin(...)
    word: str | None = Field("", json_schema_extra={"writeOnly": True})
    salt: str = Field(default_factory=lambda: uuid4().hex, json_schema_extra={"writeOnly": True})

    @field_validator("pin_digest")
    @classmethod
    def _no_dots(cls, pin: str) -> str:
        if "." in pin:
            raise ValueError("must be without dots")
        return pin


class LockerUpdate(Schema):
    """Body of a PUT. The word stays what it was."""

    label: str = Field(min_length=1, max_length=40)
    pin_digest: str = _pin("")


class LockerRead(Schema):
    """What callers see."""

    id: UUID
    label: str
    version: int
    owner_id: UUID
    created_at: datetime
    updated_at: datetime


class LockerService(ResourceService):
    """Keeps digests of pins and words."""

    def kept_of(self, column: str, secret: str) -> str:
        """Its SHA-256: quick, unlike a password's hash."""
        return digest(secret)


def digest(secret: str) -> str:
    """What the table keeps of a pin, or a word."""
    return sha256(secret.encode()).hexdigest()


RESOURCE = ResourceType(
    name="lockers",
    table=TABLE,
    create=LockerCreate,
    update=LockerUpdate,
    read=LockerRead,
    service=LockerService,
    searchable=("label",),
    sortable=("created_at",),
)
