"""Related entities: small typed values that are part of an entity, and go with it."""

from datetime import datetime
from uuid import UUID

from pydantic import Field, JsonValue
from sqlalchemy import Column, ForeignKey, Integer, String, Uuid, text
from sqlalchemy.dialects.postgresql import JSONB

from models.resource_type import Parent, ResourceType, resource_table
from models.resources.entities import Name
from models.schema import Schema

TABLE = resource_table(
    "related_entities",
    Column(
        "entity_id",
        Uuid,
        ForeignKey("entities.id", ondelete="CASCADE", name="fk_related_entity"),
        nullable=False,
    ),
    Column("type", String(50), nullable=False),
    Column("value", JSONB, nullable=False),
    Column("sort_order", Integer, nullable=False, server_default=text("0")),
    listed_by="entity_id",
)


class RelatedEntityUpdate(Schema):
    """Body of a PUT; what a PATCH must lead to."""

    type: Name = Field(max_length=50, examples=["note"])
    value: JsonValue = Field(description="Any JSON.", examples=[{"text": "handle with care"}])
    sort_order: int = Field(0, alias="order", ge=-(2**31), lt=2**31)


class RelatedEntityCreate(RelatedEntityUpdate):
    """Body of a POST."""


class RelatedEntityRead(Schema):
    """What callers see. The version stays inside."""

    id: UUID
    entity_id: UUID
    type: str
    value: JsonValue
    sort_order: int = Field(alias="order")
    created_at: datetime


RESOURCE = ResourceType(
    name="related",
    instance="related entity",
    parent=Parent("entities", "entity_id"),
    table=TABLE,
    create=RelatedEntityCreate,
    update=RelatedEntityUpdate,
    read=RelatedEntityRead,
    searchable=("type",),
    sortable=("created_at", "sort_order"),
)
