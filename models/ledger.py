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
from sqlalchemy import Connection, exc, text

from models import ledger_statements as sql
from models.database import array
from models.errors import Conflict, Contention, NotFound
from models.job import Job, JobState, Operation, Priority, Submission, to_json
from models.job_query import JobQuery
from models.job_rows import job_from

RESCUE_AFTER = timedelta(seconds=5)
"""How long an accepted job may wait for its first announcement to work before the sweep repeats it."""

REANNOUNCE_AFTER = timedelta(seconds=15)
"""The same, after the sweep announced it."""

SUSPECT_AFTER = 6
"""Announcements without an end that make a job suspect of killing its worker."""

CHANNEL = "waybill_jobs"
"""NOTIFY channel: one payload-free notification for each finished batch."""


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A job at work: what applying needs, and what its outcome is told from.

    Attributes:
        payload: JSON text.
        is_due: False while it is retrying and its time has not come.
        has_expired: Its ``expires_at`` has passed.
        crash_log: The attempts behind ``crashes``: worker, time, and the signal where somebody saw it.
        role: The principal's, when the job was accepted.
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
    crash_log: list[dict[str, Any]] | None
    parent_id: UUID | None = None
    role: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a job ended.

    Attributes:
        result: JSON text of the instance; only for ``succeeded``.
        error: Problem document; for ``failed``, ``expired`` and ``dead``.
        attempt: Attempts made, this one included.
        reason: Of an attempt that failed, for the job's history of attempts.
    """

    job_id: UUID
    state: JobState
    attempt: int
    version: int | None = None
    result: bytes | None = None
    error: Mapping[str, Any] | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class CrashAttempt:
    """An attempt on record that may kill its worker.

    Attributes:
        at: When it was written down, as the job's ``crash_log`` has it; of one worker's, it names this one.
    """

    job_id: UUID
    worker: str
    at: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """What the database added to a submission."""

    state: JobState
    sequence: int
    created_at: datetime
    transaction_id: int


class Ledger:
    """Accepts, opens, finishes, postpones, cancels and wakes jobs. Holds nothing between calls.

    Args:
        effects: Which effects on third parties follow from a success: resource, operation, effect.
    """

    def __init__(self, effects: Sequence[tuple[str, Operation, str]] = ()) -> None:
        self._has_effects = bool(effects)
        keys = ("resource", "operation", "effect")
        self._effects = to_json([dict(zip(keys, one, strict=True)) for one in effects]).decode()

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
        try:
            found = connection.execute(sql.IS_UNDER_WAY, {"transaction_id": transaction_id})
        except exc.DataError:  # a server that crashed has forgotten an id that it never had to write down
            return False
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

        A job at which a worker died waits for its own announcement.

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

        Lock the jobs in a statement before: what endpoints miss is found by it (``missed_outcomes``).

        Returns:
            Ids of the callbacks, replies and effects to announce once the transaction is committed. Job
            events are left to the sweep, which gathers those of many batches.

        Raises:
            Contention: One of the jobs was final already, or expired while it was at work. Nothing may be
                committed then.
        """
        if not outcomes:
            return []
        document = to_json([_outcome_row(outcome) for outcome in outcomes]).decode()
        changed, delivery_ids, _ = connection.execute(sql.FINISH, {"outcomes": document}).one()
        if changed != len(outcomes):
            raise Contention("a job reached its final state elsewhere")
        return [*(delivery_ids or ()), *self._write_effects(connection, outcomes)]

    def _write_effects(self, connection: Connection, outcomes: Sequence[Outcome]) -> list[UUID]:
        """Write what follows from successes to third parties; asks nothing where no resource declares any."""
        succeeded = [one.job_id for one in outcomes if one.state is JobState.SUCCEEDED]
        if not self._has_effects or not succeeded:
            return []
        parameters = {"ids": array(succeeded), "declared": self._effects}
        return [row[0] for row in connection.execute(sql.EFFECTS, parameters).all()]

    def retry_later(
        self,
        connection: Connection,
        job: OpenJob,
        *,
        attempt: int,
        delay: timedelta,
        error: Mapping[str, Any],
        reason: str,
    ) -> None:
        """Put an open job off by ``delay``. It goes on holding its lane, and remembers the ``reason``."""
        parameters = {
            "id": job.id,
            "attempt": attempt,
            "delay": delay,
            "error": to_json(error).decode(),
            "reason": reason,
        }
        if connection.execute(sql.RETRY_LATER, parameters).rowcount != 1:
            raise Contention("a job reached its final state elsewhere")

    def record_crash_attempt(self, connection: Connection, job_id: UUID, worker: str) -> CrashAttempt:
        """Count, before ``worker`` tries it, an attempt that may kill it."""
        parameters = {"id": job_id, "worker": worker}
        at: str = connection.execute(sql.CRASH_ATTEMPT, parameters).scalar_one()
        return CrashAttempt(job_id, worker, at)

    def take_back_crash_attempt(self, connection: Connection, attempt: CrashAttempt) -> None:
        """Count it no more: its worker lives. Nothing where the job has it no more, or is final.

        Raises:
            sqlalchemy.exc.DBAPIError: The job is held elsewhere; translated to Contention by the transaction.
        """
        connection.execute(sql.HASTE)  # jobs of others wait for this
        parameters = {"id": attempt.job_id, "worker": attempt.worker, "at": attempt.at}
        connection.execute(sql.TAKE_BACK_CRASH_ATTEMPT, parameters)

    def witness_crash(self, connection: Connection, worker: str, signal: str) -> None:
        """Add what killed ``worker`` to the crash attempts that it had recorded.

        Found by its name, for a suspect may have come along with a message that names others.
        """
        connection.execute(sql.WITNESS_CRASH, {"worker": worker, "signal": signal})

    def suspect(self, connection: Connection, job_ids: Sequence[UUID], announcements: int) -> None:
        """Have queued jobs announced now, as if they had been announced so often already."""
        connection.execute(sql.SUSPECT, {"ids": array(job_ids), "announcements": announcements})

    def dead_predecessors(self, connection: Connection, job_ids: Sequence[UUID]) -> dict[UUID, UUID | None]:
        """Those of ``job_ids`` that waited behind a job that ended dead; its id, if both are one user's."""
        return {row[0]: row[1] for row in connection.execute(sql.DEAD_PREDECESSORS, {"ids": array(job_ids)})}

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

    def redrive(self, connection: Connection, redrives: Mapping[UUID, bytes | None]) -> None:
        """Queue dead jobs again as a new generation, each at the end of its lane, in the order given.

        What they may do now is judged by :class:`models.dead_letters.redriving.Redriver`.

        Args:
            connection: The caller's transaction.
            redrives: Edited payload (JSON text) by job id; None leaves it as it is.

        Raises:
            Conflict: One of them is not dead, or was discarded. Nothing may be committed then.
        """
        rows = [
            {"id": job_id, "payload": None if payload is None else orjson.Fragment(payload)}
            for job_id, payload in redrives.items()
        ]
        parameters = {"redrives": to_json(rows).decode(), "rescue": RESCUE_AFTER}
        if connection.execute(sql.REDRIVE, parameters).one()[0] != len(rows):
            raise Conflict("Only a dead job can be redriven")

    def discard(self, connection: Connection, job_ids: Sequence[UUID]) -> list[UUID]:
        """Put dead jobs away for good: they stay dead, and no list of dead letters shows them; which did."""
        return [row[0] for row in connection.execute(sql.DISCARD, {"ids": array(job_ids)}).all()]

    # ---- sweep -------------------------------------------------------------------------

    def wake_scheduled(self, connection: Connection, limit: int) -> int:
        """Queue scheduled jobs whose time has come, each at the end of its lane; how many.

        Those of one time come in the order of their acceptance. None where another process is at it just now:
        two would share them, and the later of a lane might overtake the earlier.
        """
        if not connection.execute(sql.TRY_WAKING).scalar_one():
            return 0
        return connection.execute(sql.WAKE, {"limit": limit}).rowcount

    def due(self, connection: Connection, priority: Priority, limit: int) -> list[UUID]:
        """Claim up to ``limit`` jobs to announce now, oldest first; their next announcement moves on."""
        parameters = {"priority": priority, "limit": limit, "again": REANNOUNCE_AFTER}
        return [row[0] for row in connection.execute(sql.DUE, parameters).all()]

    def expire(self, connection: Connection, limit: int) -> tuple[int, list[UUID]]:
        """End jobs that are past their ``expires_at``; how many, and ids of the deliveries to announce."""
        expired = connection.execute(sql.LOCK_EXPIRED, {"limit": limit}).all()
        outcomes = [Outcome(job_id=row[0], state=JobState.EXPIRED, attempt=row[1]) for row in expired]
        return len(outcomes), self.finish(connection, outcomes)

    # ---- read --------------------------------------------------------------------------

    def find(self, connection: Connection, job_ids: Sequence[UUID]) -> dict[UUID, Job]:
        """The jobs that exist among ``job_ids``."""
        return {row[0]: job_from(row) for row in connection.execute(sql.FIND, {"ids": array(job_ids)}).all()}

    def page(self, connection: Connection, query: JobQuery) -> list[Job]:
        """One page of jobs, newest first by their ids, which carry their time."""
        statement, parameters = query.statement()
        return [job_from(row) for row in connection.execute(statement, parameters).all()]

    def lanes_in_use(
        self, connection: Connection, lanes: Sequence[int], *, principal_id: UUID | None = None
    ) -> set[int]:
        """Those of ``lanes`` that hold a queued or retrying job (of this principal, where one is given)."""
        parameters = {"lanes": array(lanes), "principal_id": principal_id}
        return {row[0] for row in connection.execute(sql.LANES_IN_USE, parameters).all()}

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
        parent_id=submission.parent_id,
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
        "parent_id": submission.parent_id,
        "principal_id": submission.principal.id,
        "role": submission.principal.role,
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
        **({} if outcome.reason is None else {"reason": outcome.reason}),
    }
