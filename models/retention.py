"""Retention: what is finished and old enough is deleted, in small batches. When to do so: ``tasks.pruner``.

What is kept for how long::

    a finished job, its events, deliveries      retention, from its end on; then all of it goes in one
    and idempotency key                         transaction, so none outlives or survives the others
    a scheduled, queued or retrying job         until it has ended, and then so long
    a dead job                                  for good; once discarded, retention from then on
    a job with something still to be sent       until that was delivered or given up
    events and notices sent, dead messages      retention
    the audit trail                             a period of its own
    ended sessions, failed log-ins              a day past their use
    tombstones                                  for good: the versions of a re-created id go on from there

Jobs and deliveries are walked in the order of their ids, which carry their time: the primary key serves
it, and no write pays for an index of its own. A batch looks at so many rows, whatever it finds. What it
passes over (scheduled for next year, dead) is not looked at again by every run: one goes on where the
one before ended, and begins anew once an hour.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection, TextClause, text

from models.database import Database, array
from models.errors import Contention, Gone, NotFound
from models.failpoints import Step
from models.identity import login_guard, refresh_families
from models.ids import created_at, earliest_id

BATCH = 200
"""Rows that one transaction looks at. A job brings some ten others along, and up to half a MiB."""

LOCK_TIMEOUT = timedelta(milliseconds=200)
"""Nobody waits for the pruning, and it waits for nobody: what is locked is left for the next hour."""

THOROUGH_EVERY = timedelta(hours=1)

CLOCKS_DIFFER_BY = timedelta(minutes=5)
"""A job's id has the time of who took it in. It is kept so much longer that, whoever is asked for it
afterwards, by whichever clock, finds its id past retention."""

LOCK = (0x5741_5942, 1)
"""Advisory lock of the one that prunes ("WAYB"); of two numbers, so it is no lane."""

_NONE = UUID(int=0)
_NO_SEQUENCE = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Batch:
    """One committed transaction.

    Attributes:
        rows: Deleted, by table.
        seconds: It took.
        behind: How much longer than they had to be the jobs in it were kept; zero where there were none.
    """

    rows: Mapping[str, int]
    seconds: float
    behind: timedelta = timedelta(0)


@dataclass(frozen=True, slots=True)
class _Bounds:
    """What a run goes by; fixed for all of it.

    Attributes:
        finished: What ended, or was settled, before this may go; None: nothing may.
        audited: Entries of the audit trail before this; None: none.
        untold: The lowest sequence that an event still to be published tells of. No job changed since.
    """

    finished: datetime | None
    audited: datetime | None
    untold: int


@dataclass(frozen=True, slots=True)
class _Step:
    """A step of a walk.

    Attributes:
        looked_at: How many rows; fewer than asked for at the end of the way.
        last: The last of them.
        rows: What was deleted, by table.
        latest: When the latest job among it had ended.
    """

    looked_at: int
    last: UUID | None
    rows: Mapping[str, int]
    latest: datetime | None = None


@dataclass(slots=True)
class _Walk:
    """A way through a table.

    Attributes:
        after: How far it was gone.
    """

    step: Callable[[Connection, dict[str, object]], _Step]
    after: UUID = _NONE


class Retention:
    """Deletes what is past its time. Several processes may ask for it; one at a time does it.

    Args:
        database: Where the ledger is.
        finished: How long what is finished is kept; zero: for good.
        audit: How long the audit trail is kept; zero: for good.
        batch: Rows that one transaction looks at.
        now: Monotonic seconds.
    """

    def __init__(
        self,
        database: Database,
        *,
        finished: timedelta,
        audit: timedelta,
        batch: int = BATCH,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._finished = finished
        self._audit = audit
        self._batch = batch
        self._now = now
        self._walks = (_Walk(_jobs), _Walk(_deliveries))
        self._thorough_at = float("-inf")

    def batches(self, *, waits: bool = False) -> Iterator[Batch]:
        """Delete everything that is past its time, a transaction with each step of the iteration.

        Leave it at any time: what was told of is committed, and the next call does the rest.

        Args:
            waits: Wait for the lock as long as the database's ``lock_timeout`` allows.

        Raises:
            Contention: Another process does it just now, or what is to be deleted is locked.
            DatabaseUnavailable: PostgreSQL cannot be reached.
        """
        began = self._now()
        is_thorough = began - self._thorough_at >= THOROUGH_EVERY.total_seconds()
        with self._database.snapshot() as connection:
            bounds = self._bounds(connection)
        if is_thorough:
            for walk in self._walks:
                walk.after = _NONE
            for table, statement, parameters in self._simple(bounds):
                yield from self._repeated(table, statement, parameters, waits=waits)
        if bounds.finished is not None:
            for walk in self._walks:
                yield from self._walked(walk, bounds, bounds.finished, waits=waits)
        if is_thorough:
            self._thorough_at = began

    def overdue(self, connection: Connection) -> dict[str, int]:
        """How many rows are past their time, by table; what hangs on jobs is not counted. Takes its time."""
        connection.execute(_NO_STATEMENT_TIMEOUT)
        bounds = self._bounds(connection)
        found: dict[str, int] = {}
        if bounds.finished is not None:
            parameters = _parameters(bounds.finished, bounds)
            found["jobs"] = connection.execute(_COUNT_JOBS, parameters).scalar_one()
            found["deliveries"] = connection.execute(_COUNT_DELIVERIES, parameters).scalar_one()
        for table, statement, given in self._simple(bounds, counts=True):
            found[table] = connection.execute(statement, given).scalar_one()
        return found

    # ---- in small transactions -----------------------------------------------------------

    def _bounds(self, connection: Connection) -> _Bounds:
        now, untold = connection.execute(_BOUNDS).one()
        return _Bounds(
            finished=now - self._finished if self._finished else None,
            audited=now - self._audit if self._audit else None,
            untold=_NO_SEQUENCE if untold is None else untold,
        )

    def _simple(
        self, bounds: _Bounds, *, counts: bool = False
    ) -> Iterator[tuple[str, TextClause, dict[str, object]]]:
        """Tables of which everything before a time goes, that its index begins with."""
        which = 1 if counts else 0
        yield "login_attempts", (login_guard.PRUNE, login_guard.COUNT_STALE)[which], {}
        yield "refresh_families", (refresh_families.PRUNE, refresh_families.COUNT_STALE)[which], {}
        if bounds.finished is not None:
            yield "dead_messages", (_DEAD_MESSAGES, _COUNT_DEAD_MESSAGES)[which], {"cutoff": bounds.finished}
        if bounds.audited is not None:
            yield "audit", (_AUDIT, _COUNT_AUDIT)[which], {"horizon": earliest_id(bounds.audited)}

    def _repeated(
        self, table: str, statement: TextClause, parameters: dict[str, object], *, waits: bool
    ) -> Iterator[Batch]:
        while True:
            began = self._now()
            with self._database.transaction(Step.PRUNE_REST) as connection:
                _take_turn(connection, waits=waits)
                deleted = connection.execute(statement, {**parameters, "most": self._batch}).rowcount
            yield Batch({table: deleted}, self._now() - began)
            if deleted < self._batch:
                return

    def _walked(self, walk: _Walk, bounds: _Bounds, finished: datetime, *, waits: bool) -> Iterator[Batch]:
        while True:
            began = self._now()
            parameters = {**_parameters(finished, bounds), "after": walk.after, "most": self._batch}
            with self._database.transaction(Step.PRUNE_JOBS) as connection:
                _take_turn(connection, waits=waits)
                step = walk.step(connection, parameters)
            walk.after = step.last or walk.after
            behind = timedelta(0) if step.latest is None else finished - step.latest
            yield Batch(step.rows, self._now() - began, behind)
            if step.looked_at < self._batch:
                return


def _jobs(connection: Connection, parameters: dict[str, object]) -> _Step:
    looked_at, last, past, latest = connection.execute(_PAST_JOBS, parameters).one()
    if not past:
        return _Step(looked_at, last, {})
    ids = {"ids": array(past)}
    locked = connection.execute(_LOCK_DELIVERIES, ids).scalars().all()
    jobs, deliveries, keys, events = connection.execute(_JOBS, {**ids, "locked": array(locked)}).one()
    rows = {"jobs": jobs, "deliveries": deliveries, "idempotency_keys": keys, "job_events": events}
    return _Step(looked_at, last, rows, latest)


def _deliveries(connection: Connection, parameters: dict[str, object]) -> _Step:
    looked_at, last, deleted = connection.execute(_DELIVERIES, parameters).one()
    return _Step(looked_at, last, {"deliveries": deleted})


def absence(job_id: UUID | None, retention: timedelta, now: datetime) -> NotFound | Gone:
    """What to say of a job that is not in the ledger, or that the caller may not know to be there.

    The id alone decides, so the answer tells nobody anything: who makes an old id up is told 410 too.

    Args:
        job_id: None where what was given is no id at all.
        retention: How long finished jobs are kept; zero: for good.
        now: By the clock of whoever answers.
    """
    born = None if job_id is None else created_at(job_id)
    if born is not None and retention and born < now - retention:
        return Gone("The job is past its retention")
    return NotFound("There is no such job")


def _take_turn(connection: Connection, *, waits: bool) -> None:
    """Be the only one to prune until the transaction ends, and wait for no row after that.

    Raises:
        Contention: Somebody else is.
    """
    key = dict(zip(("first", "second"), LOCK, strict=True))
    if waits:
        connection.execute(_WAIT_FOR_TURN, key)
    elif not connection.execute(_TRY_TURN, key).scalar_one():
        raise Contention("another process prunes just now")
    milliseconds = int(LOCK_TIMEOUT.total_seconds() * 1000)
    connection.execute(_SET_LOCK_TIMEOUT, {"timeout": f"{milliseconds}ms"})


def _parameters(finished: datetime, bounds: _Bounds) -> dict[str, object]:
    horizon = earliest_id(finished, offset=-CLOCKS_DIFFER_BY)
    return {"cutoff": finished, "untold": bounds.untold, "horizon": horizon}


_TRY_TURN = text("SELECT pg_try_advisory_xact_lock(:first, :second)")
_WAIT_FOR_TURN = text("SELECT pg_advisory_xact_lock(:first, :second)")
_NO_STATEMENT_TIMEOUT = text("SET LOCAL statement_timeout = 0")
_SET_LOCK_TIMEOUT = text("SELECT set_config('lock_timeout', :timeout, true)")

# The events of one delivery are in the order of their sequences.
_BOUNDS = text("""
SELECT clock_timestamp(), (
    SELECT min(sequences[1]) FROM deliveries WHERE announce_at IS NOT NULL AND kind = 'events')
""")

_JOB_IS_PAST = """
    (j.state IN ('succeeded', 'failed', 'cancelled', 'expired')
     OR (j.state = 'dead' AND j.discarded_at < :cutoff))
    AND j.finished_at < :cutoff AND j.sequence < :untold
    AND NOT EXISTS (SELECT FROM deliveries AS d WHERE d.job_id = j.id AND d.announce_at IS NOT NULL)
"""

_DELIVERY_IS_PAST = """
    d.announce_at IS NULL AND d.updated_at < :cutoff
    AND NOT EXISTS (SELECT FROM jobs AS j WHERE j.id = d.job_id)
"""

# = ANY(ARRAY(…)), so that the planner never thinks of reading the whole table for a join.
_PAST_JOBS = text(f"""
WITH looked_at AS MATERIALIZED (
    SELECT id FROM jobs WHERE id > :after AND id < :horizon ORDER BY id LIMIT :most
), past AS MATERIALIZED (
    SELECT j.id, j.finished_at FROM jobs AS j
    WHERE j.id = ANY(ARRAY(SELECT id FROM looked_at)) AND {_JOB_IS_PAST}
    FOR UPDATE OF j SKIP LOCKED
)
SELECT (SELECT count(*) FROM looked_at), (SELECT id FROM looked_at ORDER BY id DESC LIMIT 1),
       (SELECT array_agg(id) FROM past), (SELECT max(finished_at) FROM past)
""")

# One that is just being sent again is locked, or due by now: it is not among them, and keeps its job whole.
_LOCK_DELIVERIES = text("""
SELECT id FROM deliveries WHERE job_id = ANY(CAST(:ids AS uuid[])) AND announce_at IS NULL
FOR UPDATE SKIP LOCKED
""")

_JOBS = text("""
WITH kept AS MATERIALIZED (
    SELECT job_id FROM deliveries
    WHERE job_id = ANY(CAST(:ids AS uuid[])) AND id <> ALL(CAST(:locked AS uuid[]))
), gone AS (
    DELETE FROM jobs
    WHERE id = ANY(CAST(:ids AS uuid[])) AND id <> ALL(ARRAY(SELECT job_id FROM kept))
    RETURNING id
), sent AS (
    DELETE FROM deliveries WHERE job_id = ANY(ARRAY(SELECT id FROM gone)) RETURNING 1
), keys AS (
    DELETE FROM idempotency_keys WHERE job_id = ANY(ARRAY(SELECT id FROM gone)) RETURNING 1
), events AS (
    DELETE FROM job_events WHERE job_id = ANY(ARRAY(SELECT id FROM gone)) RETURNING 1
)
SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM sent), (SELECT count(*) FROM keys),
       (SELECT count(*) FROM events)
""")

_DELIVERIES = text(f"""
WITH looked_at AS MATERIALIZED (
    SELECT id FROM deliveries WHERE id > :after AND id < :horizon ORDER BY id LIMIT :most
), gone AS (
    DELETE FROM deliveries WHERE id = ANY(ARRAY(
        SELECT d.id FROM deliveries AS d
        WHERE d.id = ANY(ARRAY(SELECT id FROM looked_at)) AND {_DELIVERY_IS_PAST}
        FOR UPDATE OF d SKIP LOCKED))
    RETURNING 1
)
SELECT (SELECT count(*) FROM looked_at), (SELECT id FROM looked_at ORDER BY id DESC LIMIT 1),
       (SELECT count(*) FROM gone)
""")

_DEAD_MESSAGES = text("""
DELETE FROM dead_messages WHERE id = ANY(ARRAY(
    SELECT id FROM dead_messages WHERE collected_at < :cutoff
    ORDER BY collected_at LIMIT :most FOR UPDATE SKIP LOCKED))
""")

_AUDIT = text("""
DELETE FROM audit WHERE id = ANY(ARRAY(
    SELECT id FROM audit WHERE id < :horizon ORDER BY id LIMIT :most FOR UPDATE SKIP LOCKED))
""")

_COUNT_JOBS = text(f"SELECT count(*) FROM jobs AS j WHERE j.id < :horizon AND {_JOB_IS_PAST}")
_COUNT_DELIVERIES = text(
    f"SELECT count(*) FROM deliveries AS d WHERE d.id < :horizon AND {_DELIVERY_IS_PAST}"
)
_COUNT_DEAD_MESSAGES = text("SELECT count(*) FROM dead_messages WHERE collected_at < :cutoff")
_COUNT_AUDIT = text("SELECT count(*) FROM audit WHERE id < :horizon")
