"""Applying: one transaction takes lanes, reads their open jobs, changes instances, writes outcomes.

Delivery semantics live here: what is locked, what is split, what is tried again. What a job means
is the service's, how it is stored the repository's. No Celery: ``app.py`` calls this from a task.
"""

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from uuid import UUID

from sqlalchemy import Connection

from models import metrics
from models.cache.views import Changes, Views
from models.database import Database
from models.errors import Conflict, Contention, DatabaseUnavailable, Refusal, internal_problem
from models.failpoints import Step
from models.identity.users import Users
from models.job import JobState, Priority
from models.ledger import SUSPECT_AFTER, CrashAttempt, Ledger, OpenJob, Outcome
from models.registry import Registry
from models.repository import as_refusal
from models.retry import Die, Fail, Retry, RetryPolicy, reason_of
from tasks.batch import Batch
from tasks.crash_attempts import CrashAttempts

MAX_JOBS = 500
"""Jobs that one transaction takes, at most."""

MAX_ROUNDS = 20
"""Transactions in a row that one announcement may fill to the cap; its other jobs have their own."""

CONTENTIONS = 3
"""Tries of a transaction that meets a deadlock or a lock, before its set is split."""

LANE_PATIENCE = timedelta(milliseconds=500)
"""How long to wait for lanes that another worker holds, before leaving them to the sweep."""

FILL_TO = 300
"""Lanes that one transaction takes while more wait: few jobs to a commit would cost many commits."""

WITNESS_LOOKS, WITNESS_PAUSE_SECONDS = 35, 0.2
"""How long a verdict waits for the one who saw the last worker die; there is none where all died at once.

Celery sees most deaths at once, and the others when it counts its children, every five seconds.
"""

PREDECESSOR_FAILED = "predecessorFailed"
"""Member ``reason`` of the error of a job whose precondition a dead job ahead of it did not bring about."""

MAX_CRASHES = 3
"""Attempts recorded beforehand that a suspect gets."""

_log = logging.getLogger("waybill.applier")


@dataclass(slots=True)
class Applied:
    """What came of an announcement.

    Attributes:
        outcomes: How the jobs ended that ended.
        delivery_ids: Deliveries to announce now that they are committed.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    delivery_ids: list[UUID] = field(default_factory=list)


class Applier:
    """Applies announced jobs, each once, in the order of its lane.

    Args:
        database: One of this process's own.
        ledger: Locks lanes and writes outcomes.
        registry: Services and repositories by resource.
        users: Present roles, checked again in the applying transaction.
        views: Told of what changes, before and after each commit.
        retry_policy: What to do about a job that fails alone, where its resource has no policy of its own.
        sleep: Waits before a batch is tried again; injected for tests.
    """

    def __init__(
        self,
        database: Database,
        ledger: Ledger,
        registry: Registry,
        users: Users,
        views: Views,
        retry_policy: RetryPolicy,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._registry = registry
        self._users = users
        self._views = views
        self._retry_policy = retry_policy
        self._sleep = sleep
        self._crash_attempts = CrashAttempts(database, ledger)

    def apply(
        self, job_ids: Sequence[UUID], *, are_suspect: bool = False, fill_with: Priority | None = None
    ) -> Applied:
        """Apply the open jobs of the lanes that ``job_ids`` are in; what is final already stays.

        Args:
            job_ids: As announced; may be old, doubled or unknown.
            fill_with: Also take the oldest waiting jobs of this priority, up to :data:`FILL_TO` lanes.
            are_suspect: Their last announcement was not acknowledged: try each alone.

        Raises:
            DatabaseUnavailable: Nothing more can be done now; the sweep announces the rest again.
        """
        applied = Applied()
        self._crash_attempts.take_back()
        if are_suspect:
            for job_id in job_ids:
                self._apply_alone(job_id, applied, is_suspect=True)
        else:
            self._apply_or_split(list(job_ids), applied, fill_with)
        self._tell(applied.outcomes, announced=len(job_ids))
        return applied

    @staticmethod
    def _tell(outcomes: Sequence[Outcome], *, announced: int) -> None:
        """Count outcomes; log each that is not a success, and a line for the lot."""
        for outcome in outcomes:
            metrics.JOBS_FINISHED[outcome.state].inc()
            if outcome.state is not JobState.SUCCEEDED:
                error = outcome.error or {}
                facts = {"jobId": str(outcome.job_id), "requestId": error.get("requestId")}
                _log.info("job %s", outcome.state, extra={**facts, "reason": error.get("message")})
        if outcomes:
            _log.debug("jobs applied", extra={"announced": announced, "finished": len(outcomes)})

    # ---- sets --------------------------------------------------------------------------

    def _apply_or_split(
        self, job_ids: list[UUID], applied: Applied, fill_with: Priority | None = None
    ) -> None:
        """Apply a set; when it fails as a whole, halve it until the culprit stands alone.

        The culprit may be one that the set was filled with. It would spoil every set until its own turn came.
        """
        filled: list[UUID] = []
        try:
            self._apply_set(job_ids, applied, fill_with, filled)
        except DatabaseUnavailable:
            raise
        except Exception as error:
            job_ids = list(dict.fromkeys([*job_ids, *filled]))
            _log.info("batch split", extra={"jobs": len(job_ids), "reason": type(error).__name__})
            if len(job_ids) == 1:
                self._apply_alone(job_ids[0], applied)
                return
            middle = len(job_ids) // 2
            self._apply_or_split(job_ids[:middle], applied)
            self._apply_or_split(job_ids[middle:], applied)

    def _apply_set(
        self, job_ids: list[UUID], applied: Applied, fill_with: Priority | None, filled: list[UUID]
    ) -> None:
        """Apply what is free first; then wait a little for lanes that are held elsewhere.

        ``filled`` receives the heads of the lanes that the last transaction was filled with.

        Raises:
            Contention: Again and again: an instance is locked from outside, or by one of its own jobs.
        """
        held: list[int] = []
        for _ in range(MAX_ROUNDS):
            is_capped, held = self._patiently(
                lambda: self._transact(job_ids, applied, fill_with=fill_with, filled=filled)
            )
            if not is_capped:
                break
        if held:
            with suppress(Contention):  # held for long: whoever holds them goes on, or the sweep does
                self._transact(job_ids, applied, waiting_for=held)

    def _patiently(self, transact: Callable[[], tuple[bool, list[int]]]) -> tuple[bool, list[int]]:
        for _ in range(CONTENTIONS - 1):
            try:
                return transact()
            except Contention:
                self._sleep(random.uniform(0.01, 0.1))  # noqa: S311 - jitter
        return transact()

    def _transact(
        self,
        job_ids: list[UUID],
        applied: Applied,
        *,
        waiting_for: Sequence[int] = (),
        fill_with: Priority | None = None,
        filled: list[UUID] | None = None,
    ) -> tuple[bool, list[int]]:
        """One transaction over the lanes of ``job_ids``, or over the lanes that are worth ``waiting_for``.

        Returns:
            Whether the cap cut the jobs short, and the lanes that were held elsewhere.
        """
        with self._database.transaction(Step.APPLY) as connection:
            if waiting_for:
                self._ledger.wait_for_lanes(connection, waiting_for, LANE_PATIENCE)
                taken, held = list(waiting_for), list[int]()
            else:
                taken, held = self._ledger.lock_lanes(connection, job_ids)
            room, added = FILL_TO - len(taken), list[int]()
            if fill_with is not None and room > 0:
                added = self._ledger.lock_oldest_lanes(connection, fill_with, room)
                taken += added
            if not taken:
                return False, held
            jobs, is_capped = self._ready_jobs(connection, taken)
            if filled is not None:
                heads = {job.lane: job.id for job in reversed(jobs)}
                filled[:] = [heads[lane] for lane in added if lane in heads]
            suspects = {
                job.lane: job.id for job in jobs if job.announcements >= SUSPECT_AFTER or job.crashes > 0
            }
            outcomes, changes = self._run(connection, [job for job in jobs if job.lane not in suspects])
            delivery_ids = self._ledger.finish(connection, outcomes)
            mark = self._views.mark(connection, changes)
        self._views.settle(mark, changes)
        applied.outcomes += outcomes
        applied.delivery_ids += delivery_ids
        for job_id in suspects.values():
            self._apply_alone(job_id, applied, is_suspect=True)
        return is_capped and bool(outcomes), held

    def _ready_jobs(self, connection: Connection, lanes: list[int]) -> tuple[list[OpenJob], bool]:
        """The jobs of ``lanes`` that may run now, and whether the cap cut them short.

        A lane that waits for its first job's retry may be longer than the cap; it must not hide the others.
        """
        while True:
            jobs = self._ledger.open_jobs(connection, lanes, MAX_JOBS)
            ready, is_capped = runnable(jobs), len(jobs) == MAX_JOBS
            if ready or not is_capped:
                return ready, is_capped
            waiting = {job.lane for job in jobs}
            lanes = [lane for lane in lanes if lane not in waiting]

    def _run(self, connection: Connection, jobs: Sequence[OpenJob]) -> tuple[list[Outcome], Changes]:
        now = self._ledger.clock(connection)
        principals = self._users.principals(connection, list({job.principal_id for job in jobs}))
        batch = Batch(connection, self._registry, principals, now)
        outcomes = batch.run(jobs)
        if batch.unprepared:
            dead = self._ledger.dead_predecessors(connection, list(batch.unprepared))
            outcomes = [_blamed(one, dead, batch.unprepared) for one in outcomes]
        for job in jobs:
            metrics.APPLY_SECONDS.observe((now - job.created_at).total_seconds())
        return outcomes, batch.changes

    # ---- one at a time -----------------------------------------------------------------

    def _apply_alone(self, job_id: UUID, applied: Applied, *, is_suspect: bool = False) -> None:
        """Apply the lane of ``job_id`` job by job; one that is held elsewhere is left to its holder."""
        try:
            self._drain_lane(job_id, applied, is_suspect=is_suspect)
        except Contention:
            _log.info("lane held elsewhere", extra={"jobId": str(job_id)})

    def _drain_lane(self, job_id: UUID, applied: Applied, *, is_suspect: bool) -> None:
        """Apply the lane of ``job_id`` up to that job, each in a transaction of its own.

        Raises:
            Contention: The lane is held elsewhere.
        """
        while True:
            head = self._head_of_lane(job_id)
            if head is None:
                return
            has_killed = head.crashes > 0
            if _awaits_witness(head):
                head = self._hear_witness(head)
            with self._crash_attempts.outlived() as recorded:
                if (is_suspect or has_killed) and not self._may_try(head, recorded, applied):
                    continue
                if not self._try(head, recorded, applied):
                    return

    def _try(self, head: OpenJob, recorded: list[CrashAttempt], applied: Applied) -> bool:
        """Apply the head of a lane, if it is that still; whether the lane is free to go on.

        What was ``recorded`` of this attempt counts as ended once it has.

        Raises:
            Contention: The lane is held elsewhere: that is no attempt.
        """
        has_begun = False
        try:
            with self._database.transaction(Step.APPLY_ALONE) as connection:
                job = self._lock_head(connection, head.id)
                if job is None or job.id != head.id:
                    return True
                has_begun = True
                outcomes, changes = self._run(connection, [job])
                delivery_ids = self._ledger.finish(connection, outcomes)
                mark = self._views.mark(connection, changes)
            self._views.settle(mark, changes)
        except DatabaseUnavailable:
            if has_begun:
                recorded.clear()  # what takes the database down with it shall have an end too
            raise
        except Exception as error:
            if not has_begun:
                raise
            is_free = self._give_verdict(head, error, applied)
        else:
            is_free = True
            applied.outcomes += outcomes
            applied.delivery_ids += delivery_ids
        recorded.clear()
        return is_free

    def _head_of_lane(self, job_id: UUID) -> OpenJob | None:
        """The first job of the lane of ``job_id``, if it may run now."""
        with self._database.transaction() as connection:
            return self._lock_head(connection, job_id)

    def _lock_head(self, connection: Connection, job_id: UUID) -> OpenJob | None:
        taken, held = self._ledger.lock_lanes(connection, [job_id])
        if held:
            self._ledger.wait_for_lanes(connection, held, LANE_PATIENCE)
        jobs = runnable(self._ledger.open_jobs(connection, taken or held, 1)) if taken or held else []
        return jobs[0] if jobs else None

    def _hear_witness(self, head: OpenJob) -> OpenJob:
        """Give Celery's main process a moment to record what killed the last worker, before the verdict."""
        for _ in range(WITNESS_LOOKS):
            self._sleep(WITNESS_PAUSE_SECONDS)
            later = self._head_of_lane(head.id)
            if later is None or later.id != head.id or not _awaits_witness(later):
                return later or head
        return head

    def _may_try(self, job: OpenJob, recorded: list[CrashAttempt], applied: Applied) -> bool:
        """Record, in a commit of its own, an attempt that may kill this worker; after the last it is dead."""
        with self._database.transaction(Step.CRASH_ATTEMPT) as connection:
            present = self._lock_head(connection, job.id)
            if present is None or present.id != job.id or present.crashes != job.crashes:
                return False  # another worker has been at it meanwhile: look again
            if job.crashes - self._crash_attempts.count(job.id) < MAX_CRASHES:
                recorded.append(self._crash_attempts.record(connection, job.id))
                return True
            outcome = _killer(job)
            delivery_ids = self._ledger.finish(connection, [outcome])
        applied.outcomes.append(outcome)
        applied.delivery_ids += delivery_ids
        return False

    def _give_verdict(self, job: OpenJob, error: Exception, applied: Applied) -> bool:
        """Fail, postpone or bury a job that failed alone; whether its lane is free again."""
        reason = as_refusal(error)
        attempt = job.attempt + 1
        decision = self._policy_of(job).decide(reason, attempt)
        is_ours = isinstance(reason, Refusal)
        problem = (
            reason.problem(job.request_id)
            if isinstance(reason, Refusal)
            else internal_problem(job.request_id)
        )
        if not is_ours:
            _log.exception(
                "job attempt failed", exc_info=error, extra={"jobId": str(job.id), "attempt": attempt}
            )
        outcome: Outcome | None = None
        with self._database.transaction(Step.VERDICT) as connection:
            present = self._lock_head(connection, job.id)
            if present is None or present.id != job.id:
                return True
            match decision:
                case Retry() as rest:
                    delay = rest.delay(random.random())  # noqa: S311 - jitter
                    self._ledger.retry_later(
                        connection, job, attempt=attempt, delay=delay, error=problem, reason=reason_of(reason)
                    )
                    return False
                case Fail():
                    state = JobState.FAILED
                case Die():
                    state = JobState.DEAD
            outcome = Outcome(
                job_id=job.id, state=state, attempt=attempt, error=problem, reason=reason_of(reason)
            )
            delivery_ids = self._ledger.finish(connection, [outcome])
        applied.outcomes.append(outcome)
        applied.delivery_ids += delivery_ids
        return True

    def _policy_of(self, job: OpenJob) -> RetryPolicy:
        own = self._registry[job.resource].type.retry if job.resource in self._registry else None
        return own or self._retry_policy


def runnable(jobs: Sequence[OpenJob]) -> list[OpenJob]:
    """Those jobs that may run now: in each lane, all before the first that waits for its time."""
    blocked: set[int] = set()
    ready = []
    for job in jobs:
        if job.lane in blocked:
            continue
        if job.is_due or job.has_expired:
            ready.append(job)
        else:
            blocked.add(job.lane)
    return ready


def _blamed(
    outcome: Outcome, dead: Mapping[UUID, UUID | None], unprepared: Mapping[UUID, OpenJob]
) -> Outcome:
    """Where the job ahead ended dead, that is why this one's precondition does not hold: say so."""
    job = unprepared.get(outcome.job_id)
    if job is None or job.id not in dead or outcome.state is not JobState.FAILED:
        return outcome
    refused = (outcome.error or {}).get("message", "It cannot be applied")
    predecessor = dead[job.id]
    problem = Conflict(
        f"{refused}; the job ahead of it in its lane ended dead",
        extra={"reason": PREDECESSOR_FAILED} | ({"predecessor": str(predecessor)} if predecessor else {}),
    ).problem(job.request_id)
    return replace(outcome, error=problem)


def _awaits_witness(job: OpenJob) -> bool:
    """Whether a verdict is due and nobody has said yet what killed the last worker."""
    return job.crashes >= MAX_CRASHES and not (job.crash_log or [{}])[-1].get("signal")


def _killer(job: OpenJob) -> Outcome:
    """The end of a job that did not let any of its workers live, with the evidence."""
    seen = [entry.get("signal") for entry in job.crash_log or ()]
    signals = f" ({', '.join(sorted(set(filter(None, seen))))})" if any(seen) else ""
    end = "died" if all(seen) else "died or lost the database"  # where nobody saw it, nobody can tell
    message = f"The job's worker {end} at each of {job.crashes} attempts{signals}"
    problem = internal_problem(job.request_id) | {"message": message, "evidence": job.crash_log or []}
    return Outcome(job_id=job.id, state=JobState.DEAD, attempt=job.attempt + 1, error=problem, reason=message)
