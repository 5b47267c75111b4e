"""Stubs: parts of a ticket, a parent whose jobs are not folded. Who asks for them makes the table."""

from uuid import UUID

from sqlalchemy import Column, ForeignKey, String

from models.resource_type import Parent, ResourceType, resource_table
from models.schema import Schema
from models.tables import metadata
from tests.kit import tickets

TABLE = resource_table(
    "stubs",
    Column("ticket_id", ForeignKey(tickets.TABLE.c.id, ondelete="CASCADE"), nullable=False),
    Column("seat", String(8), nullable=False),
    listed_by="ticket_id",
)
metadata.remove(TABLE)


class Stub(Schema):
    """Body of a POST and PUT."""

    seat: str


class StubRead(Stub):
    """What callers see."""

    id: UUID
    ticket_id: UUID
    version: int


RESOURCE = ResourceType(
    name="stubs",
    parent=Parent("tickets", "ticket_id"),
    table=TABLE,
    create=Stub,
    update=Stub,
    read=StubRead,
)
