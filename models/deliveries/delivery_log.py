"""What became of an endpoint's deliveries, and sending them once more, or what it missed. Claims nothing.

What an endpoint missed while it was disabled is made up for in steps, by its recovery and by the sweep
after that::

    missed_since  awaited_xid
    null          null         it is owed nothing
    a time        null         each step writes what is found, until one finds less than it may write
    a time        an id        what could be seen is written. Whoever has a transaction older than this may
                               have seen the endpoint disabled, and not committed yet: once they have ended,
                               steps go on until one finds less than it may write, which is the last
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from psycopg.errors import QueryCanceled
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

from models.deliveries.endpoints import CallbackEndpoint
from models.errors import Conflict, NotFound

RECOVERED_AT_ONCE = 10_000
"""Deliveries that one recovery renews, and outcomes missed that one step makes up for, at most."""

_AT_MOST = timedelta(seconds=2)
"""How long a recovery looks for what was missed; who asked for it waits."""

_SPREAD = timedelta(seconds=10)
"""Over how long such a step is spread, so that the receiver is not hit by all of it at once."""


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
            was missed follows by :meth:`make_up`.
        """
        parameters = {
            "endpoint_id": endpoint.id,
            "since": since,
            "limit": RECOVERED_AT_ONCE,
            "spread": _SPREAD,
        }
        renewed = connection.execute(_RENEW, parameters).rowcount
        if endpoint.missed_since is None:
            return renewed
        missed = (endpoint.id, endpoint.owner_id, endpoint.events, endpoint.missed_since)
        try:
            with connection.begin_nested():
                connection.execute(_BRIEFLY, {"milliseconds": str(_AT_MOST // timedelta(milliseconds=1))})
                return renewed + self._make_up(connection, *missed)
        except OperationalError as error:
            if not isinstance(error.orig, QueryCanceled):
                raise
            return renewed  # it takes long: the sweep's affair

    def make_up(self, connection: Connection) -> int:
        """Go on with what one of the endpoints missed; how many deliveries are due because of it.

        One that somebody else is at, or that is disabled again, is passed over.
        """
        missed = connection.execute(_LOCK_ONE_THAT_MISSED).one_or_none()
        if missed is None:
            return 0
        made_up = self._make_up(connection, *missed)
        if made_up < RECOVERED_AT_ONCE:
            connection.execute(_END_OR_AWAIT, {"id": missed[0]})
        return made_up

    def _make_up(
        self,
        connection: Connection,
        endpoint_id: UUID,
        owner_id: UUID,
        events: Sequence[str],
        missed_since: datetime,
    ) -> int:
        """Under the lock of the endpoint's row, so that nobody writes the same."""
        parameters = {
            "endpoint_id": endpoint_id,
            "owner_id": owner_id,
            "events": list(events),
            "since": missed_since,
            "limit": RECOVERED_AT_ONCE,
            "spread": _SPREAD,
        }
        return connection.execute(_MAKE_UP, parameters).rowcount


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

_MAKE_UP = text("""
INSERT INTO deliveries (id, kind, job_id, sequences, endpoint_id, announce_at)
SELECT waybill_uuid7(), 'callback', j.id, ARRAY[t.sequence], :endpoint_id, now() + random() * :spread
FROM jobs AS j JOIN job_events AS t ON t.job_id = j.id
WHERE j.principal_id = :owner_id
  AND (j.finished_at IS NULL OR j.finished_at >= :since - interval '1 minute')  -- the same moment, all but
  AND t.at >= :since AND 'job.' || t.state = ANY(:events)
  AND (t.detail IS NULL OR NOT t.detail ? 'discarded')
  AND NOT EXISTS (
    SELECT 1 FROM deliveries AS d
    WHERE d.job_id = j.id AND d.endpoint_id = :endpoint_id AND d.sequences[1] = t.sequence)
ORDER BY t.sequence LIMIT :limit
""")

_BRIEFLY = text("SELECT set_config('statement_timeout', :milliseconds, true)")

# In any order, so that none holds up the others.
_LOCK_ONE_THAT_MISSED = text("""
SELECT id, owner_id, events, missed_since FROM callback_endpoints
WHERE missed_since IS NOT NULL AND NOT disabled
  AND (awaited_xid IS NULL
       OR awaited_xid <= CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS bigint))
ORDER BY random() LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
""")

# Who ends a job has locked it before, and so has a transaction id by the time at which it sees whether an
# endpoint is enabled: whoever saw this one disabled has a lower id than we, who have seen it enabled before
# we got ours. (The snapshot's xmax would not do: there may be higher ones at work.)
_END_OR_AWAIT = text("""
UPDATE callback_endpoints
SET missed_since = CASE WHEN awaited_xid IS NULL THEN missed_since END,
    awaited_xid = CASE WHEN awaited_xid IS NULL
                       THEN CAST(CAST(pg_current_xact_id() AS text) AS bigint) END
WHERE id = :id
""")
