"""What became of an endpoint's deliveries, and sending them once more. Claims nothing."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from models.deliveries.endpoints import CallbackEndpoint
from models.deliveries.missed_outcomes import RECOVERED_AT_ONCE, SPREAD, begin_to_make_up
from models.errors import Conflict, NotFound


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedDelivery:
    """A callback as its owner sees it."""

    id: UUID
    job_id: UUID
    state: str
    attempts: int
    response_status: int | None
    error: str | None

    def document(self) -> dict[str, Any]:
        """The wire document."""
        document: dict[str, Any] = {
            "id": self.id,
            "jobId": self.job_id,
            "state": self.state,
            "attempts": self.attempts,
        }
        if self.response_status is not None:
            document["responseStatus"] = self.response_status
        if self.error is not None:
            document["error"] = self.error
        return document


class DeliveryLog:
    """Reads the log and renews deliveries. Works inside the caller's transaction.

    A renewed delivery keeps its ``webhook-id`` and body, and begins anew with its attempts.
    """

    def page(
        self,
        connection: Connection,
        endpoint_id: UUID,
        *,
        state: str | None,
        before: UUID | None,
        limit: int,
    ) -> list[LoggedDelivery]:
        """Up to ``limit`` callbacks to an endpoint, newest first, those behind ``before``."""
        parameters = {"endpoint_id": endpoint_id, "state": state, "before": before, "limit": limit}
        return [LoggedDelivery(**row._mapping) for row in connection.execute(_PAGE, parameters)]

    def resend(self, connection: Connection, owner_id: UUID, delivery_id: UUID) -> LoggedDelivery:
        """Make a callback to one of the owner's endpoints due now, whatever became of it.

        Raises:
            NotFound: There is none, or it is somebody else's.
            Conflict: Its endpoint is disabled.
        """
        parameters = {"id": delivery_id, "owner_id": owner_id}
        is_disabled = connection.execute(_LOCK, parameters).scalar_one_or_none()
        if is_disabled is None:
            raise NotFound("There is no such delivery")
        if is_disabled:
            raise Conflict("The callback endpoint is disabled: recover it first")
        row = connection.execute(_RESEND, {"id": delivery_id}).one()
        return LoggedDelivery(**row._mapping)

    def recover(self, connection: Connection, endpoint: CallbackEndpoint, since: datetime | None) -> int:
        """Renew what was given up since then, and begin to make up for what it missed while it was disabled.

        Args:
            connection: The caller's transaction, which enabled it.
            endpoint: As it stands now that it is enabled.
            since: Deliveries from this time on; None: from the beginning.

        Returns:
            How many deliveries are due because of it; at most twice :data:`RECOVERED_AT_ONCE`. More that
            was missed follows: :class:`MissedOutcomes`.
        """
        parameters = {
            "endpoint_id": endpoint.id,
            "since": since,
            "limit": RECOVERED_AT_ONCE,
            "spread": SPREAD,
        }
        return connection.execute(_RENEW, parameters).rowcount + begin_to_make_up(connection, endpoint)


_COLUMNS = "id, job_id, state, attempts, response_status, error"

_PAGE = text(f"""
SELECT {_COLUMNS} FROM deliveries
WHERE endpoint_id = :endpoint_id
  AND (CAST(:state AS text) IS NULL OR state = :state)
  AND (CAST(:before AS uuid) IS NULL OR id < :before)
ORDER BY id DESC LIMIT :limit
""")

_LOCK = text("""
SELECT e.disabled FROM deliveries AS d JOIN callback_endpoints AS e ON e.id = d.endpoint_id
WHERE d.id = :id AND e.owner_id = :owner_id FOR NO KEY UPDATE OF d
""")

_RESEND = text(f"""
UPDATE deliveries
SET state = 'pending', attempts = 0, announce_at = now(), announced_at = NULL, renewed_at = now(),
    error = NULL, response_status = NULL, updated_at = now()
WHERE id = :id RETURNING {_COLUMNS}
""")

_RENEW = text("""
WITH given_up AS MATERIALIZED (
    SELECT id FROM deliveries
    WHERE endpoint_id = :endpoint_id AND state = 'failed'
      AND (CAST(:since AS timestamptz) IS NULL OR created_at >= :since)
    ORDER BY id LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE deliveries AS d
SET state = 'pending', attempts = 0, announce_at = now() + random() * :spread, announced_at = NULL,
    renewed_at = now(), error = NULL, response_status = NULL, updated_at = now()
FROM given_up WHERE d.id = given_up.id
""")
