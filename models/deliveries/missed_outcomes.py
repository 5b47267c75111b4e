"""What endpoints missed while they were disabled, made up for in steps once they are enabled again.

The first step is that of the recovery, the others are the sweep's::

    missed_since  awaited_xid
    null          null         it is owed nothing
    a time        null         what can be seen is written, in one walk through its owner's jobs
    a time        an id        that walk is over. Whoever has a transaction older than this may have seen the
                               endpoint disabled, and not committed yet: once they have ended, a second walk
                               finds all there is, which is the last
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from psycopg.errors import QueryCanceled
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

from models.database import Database
from models.deliveries.endpoints import CallbackEndpoint
from models.failpoints import Step
from models.ids import earliest_id

RECOVERED_AT_ONCE = 10_000
"""Deliveries that one step writes, at most."""

LOOKED_AT = 50_000
"""Jobs that one step looks at, at most; more than one."""

_AT_MOST = timedelta(seconds=2)
"""How long a recovery looks for what was missed; who asked for it waits."""

_LEAD = timedelta(hours=1)
"""By how much a job may be older than what was missed of it, to be found by a recovery at once."""

SPREAD = timedelta(seconds=10)
"""Over how long what a step writes is spread, so that the receiver is not hit by all of it at once."""

_BEGINNING = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Walk:
    """A walk through the jobs of an endpoint's owner, in the order of their ids.

    Attributes:
        missed_since: The endpoint's when it began.
        awaited_xid: The same. Where either has changed, the walk is not the one that is wanted any more.
        place: The job it has come to.
    """

    missed_since: datetime
    awaited_xid: int | None
    place: UUID = _BEGINNING


class MissedOutcomes:
    """Makes up for them, as one of several sweepers.

    Each walks by itself, and knows by heart how far it came: who is started anew begins anew. The first to
    arrive ends the walks of the others.

    Args:
        database: One of this process's own.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._walks: dict[UUID, Walk] = {}

    def make_up(self) -> bool:
        """Take a step for one of the endpoints; whether there is more to do at once.

        One that somebody else is at, or that is disabled again, is passed over.

        Raises:
            Contention: It took too long; nothing was done.
            DatabaseUnavailable: The same.
        """
        with self._database.transaction(Step.RECOVER) as connection:
            found = connection.execute(_LOCK_ONE_THAT_MISSED).one_or_none()
            if found is None:
                return False
            endpoint_id, owner_id, events, missed_since, awaited_xid = found
            walk = self._walks.get(endpoint_id)
            if walk is None or (walk.missed_since, walk.awaited_xid) != (missed_since, awaited_xid):
                walk = Walk(missed_since, awaited_xid)
            _, place = _step(connection, endpoint_id, owner_id, events, walk)
            if place is None:
                connection.execute(_END_OR_AWAIT, {"id": endpoint_id})
        # Not before it is committed: what was not written is looked for again.
        if place is None:
            self._walks.pop(endpoint_id, None)
        else:
            self._walks[endpoint_id] = Walk(missed_since, awaited_xid, place)
        return place is not None


def begin_to_make_up(connection: Connection, endpoint: CallbackEndpoint) -> int:
    """Take a step for an endpoint that was enabled in this transaction; how many were written.

    It begins where most of what was missed should be, with the jobs accepted since, all but; the sweep walks
    from the beginning. If it took longer than two seconds it would be left to the sweep as well.
    """
    if endpoint.missed_since is None:
        return 0
    walk = Walk(endpoint.missed_since, None, earliest_id(endpoint.missed_since, offset=-_LEAD))
    try:
        with connection.begin_nested():
            connection.execute(_BRIEFLY, {"milliseconds": str(_AT_MOST // timedelta(milliseconds=1))})
            written, _ = _step(connection, endpoint.id, endpoint.owner_id, endpoint.events, walk)
            return written
    except OperationalError as error:
        if not isinstance(error.orig, QueryCanceled):
            raise
        return 0


def _step(
    connection: Connection, endpoint_id: UUID, owner_id: UUID, events: Sequence[str], walk: Walk
) -> tuple[int, UUID | None]:
    """Under the lock of the endpoint's row, so that nobody writes the same.

    Returns:
        How many deliveries were written, and the place for the next step; None: the walk is over.
    """
    parameters = {
        "endpoint_id": endpoint_id,
        "owner_id": owner_id,
        "events": list(events),
        "since": walk.missed_since,
        "place": walk.place,
        "jobs": LOOKED_AT,
        "limit": RECOVERED_AT_ONCE,
        "spread": SPREAD,
    }
    written, place = connection.execute(_MAKE_UP, parameters).one()
    return written, place


# Each step looks at the job where the one before ended once more: some of its outcomes may be left, and what
# is written is not found again. A job and its event end at the same moment, all but: hence the minute.
# OFFSET 0 and IS TRUE have events and deliveries looked up job by job, by no other index: PostgreSQL knows of
# many that were written just now only later, and then would read all of them for each job.
_MAKE_UP = text("""
WITH walked AS MATERIALIZED (
    SELECT id, finished_at FROM jobs WHERE principal_id = :owner_id AND id >= :place
    ORDER BY id LIMIT :jobs
), missed AS MATERIALIZED (
    SELECT j.id, outcome.sequence
    FROM walked AS j CROSS JOIN LATERAL (
        SELECT t.sequence FROM job_events AS t
        WHERE t.job_id = j.id AND t.at >= :since AND 'job.' || t.state = ANY(:events)
          AND (t.detail IS NULL OR NOT t.detail ? 'discarded')
          AND NOT EXISTS (
            SELECT 1 FROM deliveries AS d
            WHERE d.job_id = j.id AND (d.endpoint_id = :endpoint_id) IS TRUE AND d.sequences[1] = t.sequence)
        OFFSET 0
    ) AS outcome
    WHERE j.finished_at IS NULL OR j.finished_at >= :since - interval '1 minute'
    ORDER BY j.id, outcome.sequence LIMIT :limit
), written AS (
    INSERT INTO deliveries (id, kind, job_id, sequences, endpoint_id, announce_at)
    SELECT waybill_uuid7(), 'callback', id, ARRAY[sequence], :endpoint_id, now() + random() * :spread
    FROM missed ORDER BY sequence
)
SELECT (SELECT count(*) FROM missed) AS written,
       CASE WHEN (SELECT count(*) FROM missed) = :limit THEN (SELECT id FROM missed ORDER BY id DESC LIMIT 1)
            WHEN (SELECT count(*) FROM walked) = :jobs THEN (SELECT id FROM walked ORDER BY id DESC LIMIT 1)
       END AS place
""")

_BRIEFLY = text("SELECT set_config('statement_timeout', :milliseconds, true)")

# In any order, so that none holds up the others.
_LOCK_ONE_THAT_MISSED = text("""
SELECT id, owner_id, events, missed_since, awaited_xid FROM callback_endpoints
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
