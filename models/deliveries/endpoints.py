"""Callback endpoints: registered once by their owner, named per job or subscribed to. No sending.

::

    registered ──▶ enabled ──410, or days of nothing but failures──▶ disabled
                      ▲                                                  │
                      └────────────────────recover───────────────────────┘
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import Connection, text

from models.database import array
from models.deliveries.endpoint_secrets import EndpointSecrets
from models.errors import Conflict, NotFound, Unauthorized
from models.identity.sealing import Unsealable
from models.identity.standing import NO_LONGER_VALID
from models.ids import new_id

EventType = Literal["job.succeeded", "job.failed", "job.cancelled", "job.expired", "job.dead"]
"""What a callback may be about; stored and sent, never renamed."""

BOTH_SIGN = timedelta(hours=24)
"""How long the previous secret still signs after a rotation."""

PATIENCE = timedelta(days=3)
"""An endpoint that took nothing for so long is disabled when the next delivery to it is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackEndpoint:
    """A receiver of outcomes.

    Attributes:
        events: Event types that it gets without being named by the job.
        missed_since: When it began to miss outcomes that it may still have to be told; None: it has none.
    """

    id: UUID
    owner_id: UUID
    url: str
    description: str | None
    events: tuple[str, ...]
    disabled: bool
    created_at: datetime
    disabled_at: datetime | None
    disabled_reason: str | None
    missed_since: datetime | None

    def document(self) -> dict[str, Any]:
        """The wire document, without the secret."""
        return {
            "id": self.id,
            "url": self.url,
            "description": self.description,
            "events": list(self.events),
            "disabled": self.disabled,
            "disabledAt": self.disabled_at,
            "disabledReason": self.disabled_reason,
            "createdAt": self.created_at,
        }


class CallbackEndpoints:
    """Keeps endpoints. Works inside the caller's transaction.

    Args:
        secrets: Seals what signs.
        per_owner: How many one user may have.
    """

    def __init__(self, secrets: EndpointSecrets, per_owner: int) -> None:
        self._secrets = secrets
        self._per_owner = per_owner

    # ---- the owner's side ----------------------------------------------------------------

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
        """Keep a new endpoint. ``url`` must have been checked already.

        Raises:
            Conflict: The owner has as many as one may have.
            Unauthorized: The owner is gone.
        """
        if connection.execute(_LOCK_OWNER, {"owner_id": owner_id}).scalar_one_or_none() is None:
            raise Unauthorized(NO_LONGER_VALID)
        if connection.execute(_COUNT, {"owner_id": owner_id}).scalar_one() >= self._per_owner:
            raise Conflict(f"You have {self._per_owner} callback endpoints already: remove one first")
        endpoint_id = new_id()
        parameters = {
            "id": endpoint_id,
            "owner_id": owner_id,
            "url": url,
            "description": description,
            "events": list(events),
            "secret": self._secrets.seal(endpoint_id, secret),
        }
        return _endpoint(connection.execute(_REGISTER, parameters).one())

    def page(
        self, connection: Connection, owner_id: UUID, *, after: UUID | None, limit: int
    ) -> list[CallbackEndpoint]:
        """Up to ``limit`` of the owner's endpoints, oldest first, those behind ``after``."""
        parameters = {"owner_id": owner_id, "after": after, "limit": limit}
        return [_endpoint(row) for row in connection.execute(_PAGE, parameters)]

    def find(self, connection: Connection, owner_id: UUID, endpoint_id: UUID) -> CallbackEndpoint:
        """The owner's endpoint.

        Raises:
            NotFound: There is none, or it is somebody else's.
        """
        row = connection.execute(_FIND, {"id": endpoint_id, "owner_id": owner_id}).one_or_none()
        if row is None:
            raise NotFound(NO_ENDPOINT)
        return _endpoint(row)

    def rotate(
        self, connection: Connection, owner_id: UUID, endpoint_id: UUID, secret: str
    ) -> CallbackEndpoint:
        """Sign with ``secret`` from now on, and with the present secret too for :data:`BOTH_SIGN`.

        A secret that was rotated out before that ends at once: two sign, never three. So does a present one
        that cannot be opened here.

        Raises:
            NotFound: There is no such endpoint, or it is somebody else's.
        """
        present = connection.execute(_LOCK, {"id": endpoint_id, "owner_id": owner_id}).scalar_one_or_none()
        if present is None:
            raise NotFound(NO_ENDPOINT)
        try:
            previous = self._secrets.seal(endpoint_id, self._secrets.open(endpoint_id, present))
        except Unsealable:
            previous = None
        parameters = {
            "id": endpoint_id,
            "secret": self._secrets.seal(endpoint_id, secret),
            "previous": previous,
            "both_sign": BOTH_SIGN,
        }
        return _endpoint(connection.execute(_ROTATE, parameters).one())

    def enable(
        self, connection: Connection, owner_id: UUID, endpoint_id: UUID, since: datetime | None = None
    ) -> CallbackEndpoint:
        """Send to it again, and remember since when it has missed outcomes.

        Args:
            connection: The caller's transaction.
            owner_id: Whose it must be.
            endpoint_id: Which.
            since: What it missed before this time, while it was disabled, it is not to be told.

        Raises:
            NotFound: There is none, or it is somebody else's.
        """
        parameters = {"id": endpoint_id, "owner_id": owner_id, "since": since}
        row = connection.execute(_ENABLE, parameters).one_or_none()
        if row is None:
            raise NotFound(NO_ENDPOINT)
        return _endpoint(row)

    def hold_disabled(self, connection: Connection, endpoint_id: UUID) -> bool:
        """Whether an endpoint is disabled, or gone; nobody enables it before the transaction ends."""
        return connection.execute(_HOLD, {"id": endpoint_id}).scalar_one_or_none() is not False

    def remove(self, connection: Connection, owner_id: UUID, endpoint_id: UUID) -> None:
        """Forget an endpoint.

        Raises:
            NotFound: There is none, or it is somebody else's.
        """
        if connection.execute(_REMOVE, {"id": endpoint_id, "owner_id": owner_id}).rowcount != 1:
            raise NotFound(NO_ENDPOINT)

    # ---- the sender's side ---------------------------------------------------------------

    def disable(
        self, connection: Connection, endpoint_id: UUID, reason: str, *, is_still_failing: bool = False
    ) -> CallbackEndpoint | None:
        """Send it nothing more; the endpoint where this was news.

        Args:
            connection: The caller's transaction.
            endpoint_id: Which.
            reason: Told to its owner.
            is_still_failing: Only where it has still taken nothing for longer than :data:`PATIENCE`: it may
                have been recovered since that was looked up.
        """
        parameters = {"id": endpoint_id, "reason": reason, "failing": is_still_failing, "patience": PATIENCE}
        row = connection.execute(_DISABLE, parameters).one_or_none()
        return None if row is None else _endpoint(row)

    def has_lost_patience(self, connection: Connection, endpoint_id: UUID) -> bool:
        """Whether it has taken nothing for longer than :data:`PATIENCE`."""
        parameters = {"id": endpoint_id, "patience": PATIENCE}
        return connection.execute(_LOST_PATIENCE, parameters).scalar_one_or_none() is not None


NO_ENDPOINT = "There is no such callback endpoint"


def _endpoint(row: Any) -> CallbackEndpoint:
    return CallbackEndpoint(
        id=row[0],
        owner_id=row[1],
        url=row[2],
        description=row[3],
        events=tuple(row[4]),
        disabled=row[5],
        created_at=row[6],
        disabled_at=row[7],
        disabled_reason=row[8],
        missed_since=row[9],
    )


_COLUMNS = (
    "id, owner_id, url, description, events, disabled, created_at, disabled_at, disabled_reason, missed_since"
)

_OWNERS = text(
    "SELECT id, owner_id FROM callback_endpoints WHERE id = ANY(CAST(:ids AS uuid[])) AND NOT disabled"
)

_LOCK_OWNER = text("SELECT 1 FROM users WHERE id = :owner_id FOR NO KEY UPDATE")

_COUNT = text("SELECT count(*) FROM callback_endpoints WHERE owner_id = :owner_id")

_REGISTER = text(f"""
INSERT INTO callback_endpoints (id, owner_id, url, description, events, secret)
VALUES (:id, :owner_id, :url, :description, :events, :secret)
RETURNING {_COLUMNS}
""")

_PAGE = text(f"""
SELECT {_COLUMNS} FROM callback_endpoints
WHERE owner_id = :owner_id AND (CAST(:after AS uuid) IS NULL OR id > :after)
ORDER BY id LIMIT :limit
""")

_FIND = text(f"SELECT {_COLUMNS} FROM callback_endpoints WHERE id = :id AND owner_id = :owner_id")

_LOCK = text(
    "SELECT secret FROM callback_endpoints WHERE id = :id AND owner_id = :owner_id FOR NO KEY UPDATE"
)

_ROTATE = text(f"""
UPDATE callback_endpoints
SET secret = :secret, previous_secret = :previous, previous_secret_until = now() + :both_sign
WHERE id = :id RETURNING {_COLUMNS}
""")

# One that is enabled may be owed something by an earlier recovery: that stays.
_ENABLE = text(f"""
UPDATE callback_endpoints
SET disabled = false, disabled_at = NULL, disabled_reason = NULL, failing_since = NULL, awaited_xid = NULL,
    missed_since = CASE WHEN disabled AND disabled_at IS NOT NULL AND events <> '{{}}'
                        THEN GREATEST(LEAST(missed_since, disabled_at), CAST(:since AS timestamptz))
                        ELSE missed_since END
WHERE id = :id AND owner_id = :owner_id RETURNING {_COLUMNS}
""")

_HOLD = text("SELECT disabled FROM callback_endpoints WHERE id = :id FOR SHARE")

_REMOVE = text("DELETE FROM callback_endpoints WHERE id = :id AND owner_id = :owner_id")

_DISABLE = text(f"""
UPDATE callback_endpoints SET disabled = true, disabled_at = now(), disabled_reason = :reason
WHERE id = :id AND NOT disabled AND (NOT :failing OR failing_since <= now() - :patience)
RETURNING {_COLUMNS}
""")

_LOST_PATIENCE = text("""
SELECT 1 FROM callback_endpoints WHERE id = :id AND failing_since <= now() - :patience
""")
