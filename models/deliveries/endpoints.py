"""Callback endpoints: registered once by their owner, named per job or subscribed to. No sending."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import Connection, text

from models.database import array
from models.errors import NotFound
from models.ids import new_id

EventType = Literal["job.succeeded", "job.failed", "job.cancelled", "job.expired", "job.dead"]
"""What a callback may be about; stored and sent, never renamed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackEndpoint:
    """A receiver of outcomes.

    Attributes:
        events: Event types that it gets without being named by the job.
    """

    id: UUID
    owner_id: UUID
    url: str
    description: str | None
    events: tuple[str, ...]
    disabled: bool
    created_at: datetime

    def document(self) -> dict[str, Any]:
        """The wire document, without the secret."""
        return {
            "id": self.id,
            "url": self.url,
            "description": self.description,
            "events": list(self.events),
            "disabled": self.disabled,
            "createdAt": self.created_at,
        }


class CallbackEndpoints:
    """Keeps endpoints. Works inside the caller's transaction."""

    def owners(self, connection: Connection, ids: Sequence[UUID | None]) -> dict[UUID | None, UUID]:
        """The owners of those endpoints among ``ids`` that exist and are enabled."""
        rows = connection.execute(_OWNERS, {"ids": array(ids)})
        return {row[0]: row[1] for row in rows}

    def register(
        self,
        connection: Connection,
        *,
        owner_id: UUID,
        url: str,
        description: str | None,
        events: Sequence[str],
        secret: str,
    ) -> CallbackEndpoint:
        """Keep a new endpoint. ``url`` must have been checked already."""
        parameters = {
            "id": new_id(),
            "owner_id": owner_id,
            "url": url,
            "description": description,
            "events": list(events),
            "secret": secret,
        }
        return _endpoint(connection.execute(_REGISTER, parameters).one())

    def of_owner(self, connection: Connection, owner_id: UUID) -> list[CallbackEndpoint]:
        """The owner's endpoints, oldest first."""
        return [_endpoint(row) for row in connection.execute(_OF_OWNER, {"owner_id": owner_id})]

    def remove(self, connection: Connection, owner_id: UUID, endpoint_id: UUID) -> None:
        """Forget an endpoint.

        Raises:
            NotFound: There is none, or it is somebody else's.
        """
        if connection.execute(_REMOVE, {"id": endpoint_id, "owner_id": owner_id}).rowcount != 1:
            raise NotFound("There is no such callback endpoint")


def _endpoint(row: Any) -> CallbackEndpoint:
    return CallbackEndpoint(
        id=row[0],
        owner_id=row[1],
        url=row[2],
        description=row[3],
        events=tuple(row[4]),
        disabled=row[5],
        created_at=row[6],
    )


_COLUMNS = "id, owner_id, url, description, events, disabled, created_at"

_OWNERS = text(
    "SELECT id, owner_id FROM callback_endpoints WHERE id = ANY(CAST(:ids AS uuid[])) AND NOT disabled"
)

_REGISTER = text(f"""
INSERT INTO callback_endpoints (id, owner_id, url, description, events, secret)
VALUES (:id, :owner_id, :url, :description, :events, :secret)
RETURNING {_COLUMNS}
""")

_OF_OWNER = text(f"SELECT {_COLUMNS} FROM callback_endpoints WHERE owner_id = :owner_id ORDER BY id")

_REMOVE = text("DELETE FROM callback_endpoints WHERE id = :id AND owner_id = :owner_id")
