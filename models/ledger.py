"""The ledger: the only writer of ``jobs.state``. Every method works inside the caller's transaction.

The states and their moves are drawn in :mod:`models.job`. Each move is one method and one statement,
compare-and-set on the state that it leaves; each writes its event, and a final one its outbox rows,
in that same statement. One column, ``announce_at``, says when a job should next be announced: it is
the rescue of a lost message, the schedule and the retry at once, and null once the job is final.

Order in a lane is ``position``, a number drawn when the job is queued; ``sequence`` is the number of
a job's last change. Both come from one database sequence.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy import Connection, text

from models import ledger_statements as sql
from models.database import array
from models.errors import Conflict, Contention, NotFound
from models.job import Job, JobState, Operation, Priority, Submission, to_json

RESCUE_AFTER = timedelta(seconds=5)
"""How long an accepted job may wait for its first announcement to work before the sweep repeats it."""

REANNOUNCE_AFTER = timedelta(seconds=15)
"""The same, after the sweep announced it."""

CHANNEL = "waybill_jobs"
"""NOTIFY channel: one payload-free notification for each finished batch."""


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A job at work: what applying needs, and what its outcome is told from.

    Attributes:
        payload: JSON text.
        is_due: False while it is retrying and its time has not come.
        has_expired: Its ``expires_at`` has passed.
    """

    id: UUID
    lane: int
    operation: Operation
    resource: str
    resource_id: UUID
    principal_id: UUID
    payload: str | None
    if_match: int | None
    attempt: int
    crashes: int
    announcements: int
    is_due: bool
    has_expired: bool
    request_id: str
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a job ended.

    Attributes:
        result: JSON text of the instance; only for ``succeeded``.
        error: Problem document; for ``failed``, ``expired`` and ``dead``.
        attempt: Attempts made, this one included.
    """

    job_id: UUID
    state: JobState
    attempt: int
    version: int | None = None
    result: bytes | None = None
    error: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """What the database added to a submission."""

    state: JobState
    sequence: int
    created_at: datetime
    transaction_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobQuery:
    """A page of jobs, newest first."""

    principal_id: UUID | None = None
    state: str | None = None
    resource: str | None = None
    resource_id: UUID | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    before: UUID | None = None
    limit: int = 20


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is open at a moment.

    Attributes:
        jobs: Open jobs by priority.
        ages: Seconds that the oldest has been queued, by priority.
        finished: Jobs that ended since the reading before.
        mark: Where the next reading counts from.
        read_at: POSIX seconds, by the database's clock.
    """

    jobs: Mapping[Priority, int]
    ages: Mapping[Priority, float]
    finished: int
    mark: int
    read_at: float


class Ledger:
    """Accepts, opens, finishes, postpones, cancels and wakes jobs. Holds nothing between calls."""

    # ---- accept ------------------------------------------------------------------------

    def accept(self, connection: Connection, batch: Sequence[Submission]) -> dict[UUID, Accepted]:
        """Write ``batch`` as jobs, in its order: ``queued``, or ``scheduled`` where it runs later.

        Returns:
            What the database added, by job id.
        """
        document = to_json([_row(submission) for submission in batch]).decode()
        added = connection.execute(sql.ACCEPT, {"batch": document, "rescue": RESCUE_AFTER}).all()
        return {row[0]: Accepted(JobState(row[1]), *row[2:]) for row in added}

    def is_under_way(self, connection: Connection, transaction_id: int) -> bool:
        """Whether the transaction of an acceptance is neither committed nor rolled back yet."""
        found = connection.execute(sql.IS_UNDER_WAY, {"transaction_id": transaction_id})
        return bool(found.scalar_one())

    # ---- apply -------------------------------------------------------------------------

    def lock_lanes(self, connection: Connection, job_ids: Sequence[UUID]) -> tuple[list[int], list[int]]:
        """Take the lanes of the open jobs among ``job_ids`` until the transaction ends.

        A lane that another transaction holds is not waited for. Read the lanes' jobs in a
        statement of its own afterwards: only that sees what the previous holder committed.

        Returns:
            The lanes taken, and the lanes held elsewhere.
        """
        taken: list[int] = []
        held: list[int] = []
        for lane, is_ours in connection.execute(sql.TRY_LANES, {"ids": array(job_ids)}).all():
            (taken if is_ours else held).append(lane)
        return taken, held

    def lock_oldest_lanes(self, connection: Connection, priority: Priority, room: int) -> list[int]:
        """Take up to ``room`` further lanes, those whose jobs wait longest, skipping what is held.

        Small announcements of a backlog then share a transaction; those that come too late find
        their jobs done.
        """
        oldest = connection.execute(sql.TRY_OLDEST_LANES, {"priority": priority, "room": room}).all()
        return [row[0] for row in oldest]

    def wait_for_lanes(self, connection: Connection, lanes: Iterable[int], timeout: timedelta) -> None:
        """Take ``lanes``, waiting up to ``timeout`` for each, in the order of their keys: no deadlock.

        Raises:
            sqlalchemy.exc.DBAPIError: SQLSTATE 55P03, translated to Contention by the transaction.
        """
        milliseconds = max(1, int(timeout.total_seconds() * 1000))
        connection.execute(text(f"SET LOCAL lock_timeout = {milliseconds}"))
        for lane in sorted(lanes):
            connection.execute(sql.WAIT_LANE, {"lane": lane})

    def open_jobs(self, connection: Connection, lanes: Sequence[int], limit: int) -> list[OpenJob]:
        """The open jobs of lanes already locked, in order, rows locked against cancel; at most ``limit``."""
        rows = connection.execute(sql.OPEN_JOBS, {"lanes": array(lanes), "limit": limit}).all()
        return [OpenJob(row[0], row[1], Operation(row[2]), *row[3:]) for row in rows]

    def clock(self, connection: Connection) -> datetime:
        """The database's time, now."""
        moment: datetime = connection.execute(sql.CLOCK).scalar_one()
        return moment

    # ---- finish ------------------------------------------------------------------------

    def finish(self, connection: Connection, outcomes: Sequence[Outcome]) -> list[UUID]:
        """The one door to a final state: outcome, event and deliveries, written together.

        Returns:
            Ids of the callbacks and replies to announce once the transaction is committed. Job events
            are left to the sweep, which gathers those of many batches.

        Raises:
            Contention: One of the jobs was final already. Nothing may be committed then.
        """
        if not outcomes:
            return []
        document = to_json([_outcome_row(outcome) for outcome in outcomes]).decode()
        changed, delivery_ids, _ = connection.execute(sql.FINISH, {"outcomes": document}).one()
        if changed != len(outcomes):
            raise Contention("a job reached its final state elsewhere")
        return list(delivery_ids or ())

    def retry_later(
        self,
        connection: Connection,
        job: OpenJob,
        *,
        attempt: int,
        delay: timedelta,
        error: Mapping[str, Any],
    ) -> None:
        """Put an open job off by ``delay``. It goes on holding its lane."""
        parameters = {"id": job.id, "attempt": attempt, "delay": delay, "error": to_json(error).decode()}
        if connection.execute(sql.RETRY_LATER, parameters).rowcount != 1:
            raise Contention("a job reached its final state elsewhere")

    def record_crash_attempt(self, connection: Connection, job_id: UUID) -> int:
        """Count, before trying, an attempt that may kill its worker; how many there were."""
        crashes: int = connection.execute(sql.CRASH_ATTEMPT, {"id": job_id}).scalar_one()
        return crashes

    # ---- cancel and redrive ------------------------------------------------------------

    def cancel(self, connection: Connection, job_id: UUID) -> list[UUID]:
        """Withdraw a job that is not final. Waits for whoever is applying it, and tells the truth.

        Returns:
            Ids of the deliveries to announce.

        Raises:
            NotFound: There is no such job.
            Conflict: It is final; the message says in which state.
        """
        found = connection.execute(sql.LOCK_JOB, {"id": job_id}).one_or_none()
        if found is None:
            raise NotFound("There is no such job")
        state, attempt = found
        if JobState(state).is_done:
            raise Conflict(f"The job is {state} already")
        return self.finish(connection, [Outcome(job_id=job_id, state=JobState.CANCELLED, attempt=attempt)])

    def redrive(self, connection: Connection, job_id: UUID) -> None:
        """Queue a dead job again, at the end of its lane, with its attempts reset.

        Raises:
            Conflict: It is not dead.
        """
        if connection.execute(sql.REDRIVE, {"id": job_id, "rescue": RESCUE_AFTER}).rowcount != 1:
            raise Conflict("Only a dead job can be redriven")

    # ---- sweep -------------------------------------------------------------------------

    def wake_scheduled(self, connection: Connection, limit: int) -> int:
        """Queue scheduled jobs whose time has come, each at the end of its lane; how many."""
        return connection.execute(sql.WAKE, {"limit": limit}).rowcount

    def due(self, connection: Connection, priority: Priority, limit: int) -> list[UUID]:
        """Claim up to ``limit`` jobs to announce now, oldest first; their next announcement moves on."""
        parameters = {"priority": priority, "limit": limit, "again": REANNOUNCE_AFTER}
        return [row[0] for row in connection.execute(sql.DUE, parameters).all()]

    def expire(self, connection: Connection, limit: int) -> list[UUID]:
        """End jobs that are past their ``expires_at``; ids of the deliveries to announce."""
        expired = connection.execute(sql.LOCK_EXPIRED, {"limit": limit}).all()
        outcomes = [Outcome(job_id=row[0], state=JobState.EXPIRED, attempt=row[1]) for row in expired]
        return self.finish(connection, outcomes)

    # ---- read --------------------------------------------------------------------------

    def find(self, connection: Connection, job_ids: Sequence[UUID]) -> dict[UUID, Job]:
        """The jobs that exist among ``job_ids``."""
        return {row[0]: job_from(row) for row in connection.execute(sql.FIND, {"ids": array(job_ids)}).all()}

    def page(self, connection: Connection, query: JobQuery) -> list[Job]:
        """One page of jobs, newest first."""
        conditions = {
            "principal_id": query.principal_id,
            "state": query.state,
            "resource": query.resource,
            "resource_id": query.resource_id,
        }
        wanted: dict[str, Any] = {name: value for name, value in conditions.items() if value is not None}
        clauses = [f"{name} = :{name}" for name in wanted]
        bounds = {
            "id < :before": query.before,
            "created_at > :created_after": query.created_after,
            "created_at < :created_before": query.created_before,
        }
        for clause, bound in bounds.items():
            if bound is not None:
                clauses.append(clause)
                wanted[clause.rpartition(":")[2]] = bound
        where = " AND ".join(clauses) or "true"
        statement = text(f"SELECT {sql.JOB_COLUMNS} FROM jobs WHERE {where} ORDER BY id DESC LIMIT :limit")
        return [
            job_from(row) for row in connection.execute(statement, {**wanted, "limit": query.limit}).all()
        ]

    def lanes_in_use(
        self, connection: Connection, lanes: Sequence[int], *, principal_id: UUID | None = None
    ) -> set[int]:
        """Those of ``lanes`` that hold a queued or retrying job (of this principal, where one is given)."""
        parameters = {"lanes": array(lanes), "principal_id": principal_id}
        return {row[0] for row in connection.execute(sql.LANES_IN_USE, parameters).all()}

    def open_backlog(self, connection: Connection, mark: int | None) -> Backlog:
        """What is queued or retrying, and how many ended since ``mark`` (None: since now)."""
        rows = [(Priority(row[0]), row[1], float(row[2])) for row in connection.execute(sql.OPEN_BACKLOG)]
        if mark is None:
            mark = connection.execute(sql.LAST_SEQUENCE).scalar_one()
        finished, mark, read_at = connection.execute(sql.FINISHED_SINCE, {"mark": mark}).one()
        return Backlog(
            jobs={priority: jobs for priority, jobs, _ in rows},
            ages={priority: age for priority, _, age in rows},
            finished=finished,
            mark=mark,
            read_at=float(read_at),
        )

    def backlog(self, connection: Connection) -> list[tuple[JobState, Priority, int, float]]:
        """Open and scheduled jobs: state, priority, how many, and the age of the oldest in seconds."""
        return [
            (JobState(r[0]), Priority(r[1]), r[2], float(r[3])) for r in connection.execute(sql.BACKLOG).all()
        ]


def accepted_job(submission: Submission, added: Accepted) -> Job:
    """The job that ``submission`` became, without reading it back."""
    return Job(
        id=submission.job_id,
        state=added.state,
        operation=submission.operation,
        resource=submission.resource,
        resource_id=submission.resource_id,
        principal_id=submission.principal.id,
        attempt=0,
        priority=submission.priority,
        created_at=added.created_at,
        run_at=_in_utc(submission.run_at),
        finished_at=None,
        expires_at=_in_utc(submission.expires_at),
        version=None,
        result=None,
        error=None,
        request_id=submission.request_id,
        sequence=added.sequence,
    )


def _in_utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.astimezone(UTC)


def _row(submission: Submission) -> dict[str, Any]:
    return {
        "id": submission.job_id,
        "lane": submission.lane,
        "operation": submission.operation,
        "resource": submission.resource,
        "resource_id": submission.resource_id,
        "principal_id": submission.principal.id,
        "door": submission.door,
        "priority": submission.priority,
        "payload": orjson.Fragment(submission.payload) if submission.payload is not None else None,
        "if_match": submission.if_match,
        "run_at": submission.run_at,
        "expires_at": submission.expires_at,
        "request_id": submission.request_id,
        "callback_endpoint_id": submission.callback_endpoint_id,
        "reply_to": submission.reply_to,
        "correlation_id": submission.correlation_id,
        "traceparent": submission.traceparent,
    }


def _outcome_row(outcome: Outcome) -> dict[str, Any]:
    return {
        "id": outcome.job_id,
        "state": outcome.state,
        "attempt": outcome.attempt,
        "version": outcome.version,
        "result": orjson.Fragment(outcome.result) if outcome.result is not None else None,
        "error": outcome.error,
    }


def job_from(row: Sequence[Any]) -> Job:
    """A job from the columns of :data:`ledger_statements.JOB_COLUMNS`, in their order."""
    return Job(
        id=row[0],
        state=JobState(row[1]),
        operation=Operation(row[2]),
        resource=row[3],
        resource_id=row[4],
        principal_id=row[5],
        attempt=row[6],
        priority=Priority(row[7]),
        created_at=row[8],
        run_at=row[9],
        finished_at=row[10],
        expires_at=row[11],
        version=row[12],
        result=row[13],
        error=row[14],
        request_id=row[15],
        sequence=row[16],
    )
