"""Every move of the ledger in any order, against a pure model of what may follow (hypothesis)."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, ClassVar
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from models.errors import Conflict
from models.job import FINAL, OPEN, TRANSITIONS, JobState, Operation
from models.retry import RetryPolicy
from tests.kit.platform import Platform
from tests.kit.tickets import BROKEN

LATER = datetime(2100, 1, 1, tzinfo=UTC)
POLICY = RetryPolicy(max_attempts=2, base=timedelta(hours=1), cap=timedelta(hours=1))
LANES = 3


@dataclass
class ModelJob:
    """What the model knows of a job."""

    id: UUID
    lane: int
    state: JobState
    is_broken: bool
    attempt: int = 0
    is_due: bool = True
    must_expire: bool = False
    generation: int = 0
    events: list[JobState] = field(default_factory=list)

    def move(self, state: JobState) -> None:
        """To ``state``, by a legal transition."""
        assert state in TRANSITIONS[self.state], f"the model itself moves from {self.state} to {state}"
        self.state = state
        self.events.append(state)


class LedgerMachine(RuleBasedStateMachine):
    """Tickets in three lanes; each job is a patch, whose effect is a version, or breaks."""

    platform: ClassVar[Platform]
    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.platform.end_everything()
        self.tickets = [
            job.resource_id for job in self.platform.made(*(self._ticket(n) for n in range(LANES)))
        ]
        self.platform.end_everything()
        self.lanes: list[list[ModelJob]] = [[] for _ in range(LANES)]
        """Open jobs in the order of their lane."""
        self.all: list[ModelJob] = []
        self.effects = [0] * LANES

    def _ticket(self, number: int) -> Any:
        return self.platform.ticket(f"{number}-{id(self)}-{datetime.now(UTC).timestamp()}", labels={})

    def _do(self, work: Any) -> Any:
        with self.platform.database.transaction() as connection:
            return work(connection)

    # ---- moves -------------------------------------------------------------------------

    @rule(target=jobs, lane=st.integers(0, LANES - 1), is_broken=st.booleans(), is_scheduled=st.booleans())
    def accept(self, lane: int, *, is_broken: bool, is_scheduled: bool) -> ModelJob:
        data = {"labels": {}, "note": BROKEN if is_broken else None}
        submission = self.platform.submission(
            Operation.PATCH,
            self.tickets[lane],
            data,
            resource="tickets",
            run_at=LATER if is_scheduled else None,
        )
        (job_id,) = self.platform.accept(submission)
        state = JobState.SCHEDULED if is_scheduled else JobState.QUEUED
        job = ModelJob(job_id, lane, state, is_broken, events=[state])
        self.all.append(job)
        if not is_scheduled:
            self.lanes[lane].append(job)
        return job

    @rule(job=jobs)
    def make_due(self, job: ModelJob) -> None:
        """Time passes for a scheduled or retrying job."""
        if job.state in (JobState.SCHEDULED, JobState.RETRYING):
            self.platform.rows(
                "UPDATE jobs SET announce_at = now(), run_at = now() WHERE id = :id", id=job.id
            )
            job.is_due = True
            if job.state is JobState.SCHEDULED:
                assert self._do(lambda connection: self.platform.ledger.wake_scheduled(connection, 100)) == 1
                job.move(JobState.QUEUED)
                self.lanes[job.lane].append(job)

    @rule(job=jobs)
    def apply(self, job: ModelJob) -> None:
        self.platform.applier(POLICY).apply([job.id])
        if job.state in OPEN:
            # A culprit splits the set: then the lane is run job by job, and only up to the one announced.
            self._run_lane(job.lane, until=job if self._has_culprit(job.lane) else None)

    @rule(job=jobs)
    def apply_as_suspect(self, job: ModelJob) -> None:
        self.platform.applier(POLICY).apply([job.id], are_suspect=True)
        if job.state in OPEN:
            self._run_lane(job.lane, until=job)

    def _has_culprit(self, lane: int) -> bool:
        for job in self.lanes[lane]:
            if job.state is JobState.RETRYING and not job.is_due and not job.must_expire:
                return False
            if job.is_broken and not job.must_expire:
                return True
        return False

    def _run_lane(self, lane: int, until: ModelJob | None = None) -> None:
        waiting = self.lanes[lane]
        while waiting:
            head = waiting[0]
            if head.state is JobState.RETRYING and not head.is_due and not head.must_expire:
                return
            if head.must_expire:
                head.move(JobState.EXPIRED)
            elif not head.is_broken:
                head.move(JobState.SUCCEEDED)
                self.effects[lane] += 1
            else:
                head.attempt += 1
                if head.attempt < POLICY.max_attempts:
                    head.move(JobState.RETRYING)
                    head.is_due = False
                    return
                head.move(JobState.DEAD)
            waiting.pop(0)
            if head is until:
                return

    @rule(job=jobs)
    def cancel(self, job: ModelJob) -> None:
        if job.state in FINAL:
            with pytest.raises(Conflict):
                self._do(lambda connection: self.platform.ledger.cancel(connection, job.id))
            return
        self._do(lambda connection: self.platform.ledger.cancel(connection, job.id))
        job.move(JobState.CANCELLED)
        self._leave(job)

    @rule(job=jobs)
    def pass_the_expiry(self, job: ModelJob) -> None:
        self.platform.rows("UPDATE jobs SET expires_at = now() WHERE id = :id", id=job.id)
        job.must_expire = True

    @rule()
    def expire(self) -> None:
        self._do(lambda connection: self.platform.ledger.expire(connection, 100))
        for job in self.all:
            if job.must_expire and job.state not in FINAL:
                job.move(JobState.EXPIRED)
                self._leave(job)

    @precondition(lambda self: any(job.state is JobState.DEAD for job in self.all))
    @rule(is_mended=st.booleans(), pick=st.randoms(use_true_random=False))
    def redrive(self, *, is_mended: bool, pick: Any) -> None:
        job = pick.choice([job for job in self.all if job.state is JobState.DEAD])
        if is_mended:
            self.platform.rows("UPDATE jobs SET payload = '{\"labels\": {}}' WHERE id = :id", id=job.id)
            job.is_broken = False
        self._do(lambda connection: self.platform.ledger.redrive(connection, {job.id: None}))
        job.move(JobState.QUEUED)
        job.attempt, job.generation, job.is_due = 0, job.generation + 1, True
        self.lanes[job.lane].append(job)

    @rule()
    def announce(self) -> None:
        for priority in ("high", "normal", "bulk"):
            self._do(lambda connection, p=priority: self.platform.ledger.due(connection, p, 100))

    def _leave(self, job: ModelJob) -> None:
        if job in self.lanes[job.lane]:
            self.lanes[job.lane].remove(job)

    # ---- what always holds -------------------------------------------------------------

    @invariant()
    def ledger_and_model_agree(self) -> None:
        rows = {
            row.id: row
            for row in self.platform.rows(
                "SELECT id, state, attempt, announce_at, finished_at, position FROM jobs"
            )
        }
        assert {key: row.state for key, row in rows.items()} == {job.id: job.state for job in self.all}
        for row in rows.values():
            assert (row.announce_at is None) == (row.state in FINAL) == (row.finished_at is not None)
        for lane in self.lanes:
            positions = [rows[job.id].position for job in lane]
            assert positions == sorted(positions)

    @invariant()
    def events_tell_legal_moves_and_one_end_per_generation(self) -> None:
        told: dict[UUID, list[JobState]] = {}
        for row in self.platform.rows("SELECT job_id, state FROM job_events ORDER BY sequence"):
            told.setdefault(row.job_id, []).append(JobState(row.state))
        assert told == {job.id: job.events for job in self.all}
        for job in self.all:
            events = told[job.id]
            assert all(after in TRANSITIONS[before] for before, after in pairwise(events))
            ends = sum(state in FINAL for state in events)
            assert ends == job.generation + (job.state in FINAL)

    @invariant()
    def every_success_has_one_effect(self) -> None:
        for lane, ticket in enumerate(self.tickets):
            row = self.platform.instance(ticket, "tickets")
            assert row is not None
            assert row["version"] == 1 + self.effects[lane]


@pytest.mark.timeout(170)
def test_ledger_moves_as_the_model_says(platform: Platform) -> None:
    LedgerMachine.platform = platform
    run_state_machine_as_test(
        LedgerMachine,
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            database=None,
            phases=(Phase.explicit, Phase.generate),  # shrinking would take longer than the time-out
            suppress_health_check=list(HealthCheck),
        ),
    )
