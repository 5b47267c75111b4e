"""A resource for tests, with what entities lack: a unique number, decimals, dates, and a service that fails.

Its table is taken out of the shared metadata again, so that no other test's migration misses it;
``Platform`` makes it. Notes make the service misbehave, see :class:`TicketService`.
"""

import os
import signal
import time
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from uuid import UUID

from pydantic import Field, JsonValue
from sqlalchemy import Column, Date, Numeric, String, Text
from sqlalchemy.dialects.postgresql import JSONB

from models.resource_type import ResourceType, resource_table
from models.schema import Schema
from models.service import ResourceService, Row
from models.tables import metadata

BROKEN = "broken"
"""Raises what nobody expects."""
LETHAL = "lethal"
"""Kills the process that applies it."""
HELD = "held:"
"""Followed by a path: the pid is written to ``<path>.pid``, then it waits until the path exists."""

TABLE = resource_table(
    "order-tickets",  # a name that SQL takes only in quotes
    Column("number", String(40), nullable=False, unique=True),
    Column("note", Text),
    Column("price", Numeric(12, 2)),
    Column("due_on", Date),
    Column("labels", JSONB, nullable=False),
    Column("assignee", Text),
)
metadata.remove(TABLE)


class TicketCreate(Schema):
    """Body of a POST. An assignee comes later."""

    number: str = Field(min_length=1, max_length=40)
    note: str | None = None
    price: Decimal | None = Field(None, max_digits=12, decimal_places=2)
    due_on: date | None = None
    labels: JsonValue = None


class TicketUpdate(TicketCreate):
    """Body of a PUT."""

    assignee: str | None = None


class TicketRead(TicketUpdate):
    """What callers see."""

    id: UUID
    version: int
    owner_id: UUID
    created_at: datetime
    updated_at: datetime


class TicketService(ResourceService):
    """Does what the note says."""

    def check(self, before: Row | None, after: Row) -> None:
        """Fail, die or wait."""
        note = after["note"] or ""
        if note == BROKEN:
            raise RuntimeError("a fault of ours, with a secret inside")
        if note == LETHAL:
            os.kill(os.getpid(), signal.SIGKILL)
        if note.startswith(HELD):
            gate = Path(note.removeprefix(HELD))
            gate.with_suffix(".pid").write_text(str(os.getpid()))
            while not gate.exists():
                time.sleep(0.01)


RESOURCE = ResourceType(
    name="tickets",
    table=TABLE,
    create=TicketCreate,
    update=TicketUpdate,
    read=TicketRead,
    service=TicketService,
    searchable=("number", "note"),
)
