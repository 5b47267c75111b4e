"""GET /jobs/{id}/explain: why a job stands where it stands. What is so, ``models.explanation`` finds out."""

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import Field, JsonValue

from api_shim.routes.jobs import OwnJob, may_see
from api_shim.routes.outcomes import BASE, NO_STORE
from api_shim.web.http import Request, Response, json_response
from api_shim.web.router import Answer, Limit, Route
from api_shim.web.threads import Threads
from models import breaker, explanation
from models.breaker import Phase
from models.database import Database
from models.deliveries.outbox import DeliveryKind
from models.explanation import Facts
from models.identity.principals import Principal, may_anything
from models.job import Job, JobState, Priority
from models.registry import Registry
from models.resource_type import ResourceType
from models.schema import Schema
from tasks.names import JOB_QUEUES
from tasks.presence import QueueState

QueueLook = Callable[[str], QueueState | None]
"""Depth and consumers of a queue; None where the broker does not answer. Blocks."""


def unknown_queue(name: str) -> QueueState | None:
    """Where there is nobody to ask."""
    return None


class Blocker(Schema):
    """The first job of the lane."""

    id: UUID | None = Field(description="null where it is somebody else's")
    state: JobState
    attempt: int
    run_at: datetime | None = Field(description="when it is tried again")


class Lane(Schema):
    """Its place among the jobs on the same instance."""

    position: int | None = Field(description="1 is next; null where it does not wait in its lane")
    blocker: Blocker | None


class Queue(Schema):
    """Its place among all jobs of its priority."""

    name: str
    messages: int | None = Field(description="on the broker; null where it does not answer")
    ahead: int = Field(description="open jobs that came before it, counted to 100,000")


class Workers(Schema):
    """Who could apply it."""

    alive: int | None = Field(description="consuming its queue; null where the broker does not answer")


class Breaker(Schema):
    """The way to a receiver of its outcome, or to a third party that its effects call."""

    dependency: str = Field(
        description="host:port of a callback receiver, service:<name> of a third party",
        examples=["service:accounting"],
    )
    state: Phase
    failures: int
    next_probe: datetime | None = Field(description="when one delivery may try again; null while closed")


class Announcements(Schema):
    """How often the sweep announced it."""

    count: int = Field(description="since it was last queued")
    latest: list[datetime]
    next: datetime | None


class Change(Schema):
    """One change of its state."""

    sequence: int
    state: JobState
    at: datetime


class DeliveryStanding(Schema):
    """How an outcome fares on its way."""

    kind: DeliveryKind
    state: str
    attempts: int
    next_at: datetime | None
    error: str | None


class Estimate(Schema):
    """A guess, from how fast jobs came to an end lately."""

    finished_at: datetime | None
    jobs_per_second: float | None


class Explanation(Schema):
    """Why a job stands where it stands."""

    id: UUID
    state: JobState
    summary: str = Field(examples=["It waits behind 2 job(s) of its lane; the first is retrying."])
    attempt: int
    generation: int
    lane: Lane
    queue: Queue
    workers: Workers
    breakers: list[Breaker]
    announcements: Announcements
    attempts: list[dict[str, JsonValue]] = Field(description="that failed: generation, attempt, at, reason")
    crashes: list[dict[str, JsonValue]] = Field(description="recorded beforehand: worker, at, signal")
    changes: list[Change]
    deliveries: list[DeliveryStanding]
    estimate: Estimate


class Explain:
    """The route.

    Args:
        database: Where the ledger is.
        own: The job in the path.
        threads: Where the rest is looked up.
        brokers: Threads that may wait for a broker.
        look: Asks the broker about a queue.
        registry: Whose effects call third parties.
    """

    def __init__(
        self,
        database: Database,
        own: OwnJob,
        threads: Threads,
        brokers: Threads,
        look: QueueLook,
        registry: Registry,
    ) -> None:
        self._database = database
        self._own = own
        self._threads = threads
        self._brokers = brokers
        self._look = look
        self._registry = registry

    async def explain(self, request: Request) -> Response:
        """The explanation."""
        job = await self._own(request)
        facts = await self._threads.call(self._gather, job, self._declared(job, request.principal))
        queue = await self._brokers.call(self._look, JOB_QUEUES[job.priority])
        return json_response(200, _document(job, facts, queue, request.principal), (NO_STORE,))

    def _gather(self, job: Job, declared: ResourceType | None) -> Facts:
        with self._database.snapshot() as connection:
            return explanation.gather(connection, job, declared)

    def _declared(self, job: Job, principal: Principal) -> ResourceType | None:
        """What it is about; None where that is not served here, or the caller may do nothing there by now."""
        if job.resource not in self._registry:
            return None
        declared = self._registry[job.resource].type
        return declared if may_anything(declared.permissions, principal) else None

    def routes(self) -> Iterator[Route]:
        """The route."""
        yield Route(
            method="GET",
            path=f"{BASE}/jobs/{{id}}/explain",
            handle=self.explain,
            operation_id="explain_job",
            summary="Why a job stands where it stands, and when it may be done",
            tag="jobs",
            permission="own, admin: all",
            limit=Limit.JOBS,
            answers={200: Answer("The explanation", Explanation, ("Cache-Control",))},
            errors=(404, 410),
        )


def _document(job: Job, facts: Facts, queue: QueueState | None, principal: Principal) -> dict[str, Any]:
    in_lane = job.state in (JobState.QUEUED, JobState.RETRYING)
    workers = None if queue is None else queue.consumers
    return {
        "id": job.id,
        "state": job.state,
        "summary": explanation.summary(job, facts, workers),
        "attempt": job.attempt,
        "generation": job.generation,
        "lane": {
            "position": facts.ahead_in_lane + 1 if in_lane else None,
            "blocker": _blocker(facts, principal),
        },
        "queue": {
            "name": JOB_QUEUES[Priority(job.priority)],
            "messages": None if queue is None else queue.messages,
            "ahead": facts.ahead_in_queue,
        },
        "workers": {"alive": workers},
        "breakers": [
            {
                "dependency": dependency,
                "state": breaker.phase(state, facts.now),
                "failures": state.failures,
                "nextProbe": state.probe_at,
            }
            for dependency, state in facts.dependencies.items()
        ],
        "announcements": {
            "count": facts.announcements,
            "latest": list(facts.announced_at),
            "next": facts.next_announcement,
        },
        "attempts": job.attempts or [],
        "crashes": list(facts.crash_log),
        "changes": [{"sequence": one[0], "state": one[1], "at": one[2]} for one in facts.events],
        "deliveries": [
            {"kind": one[0], "state": one[1], "attempts": one[2], "nextAt": one[3], "error": one[4]}
            for one in facts.deliveries
        ],
        "estimate": {
            "finishedAt": explanation.estimate(job, facts),
            "jobsPerSecond": facts.finished_per_second,
        },
    }


def _blocker(facts: Facts, principal: Principal) -> dict[str, Any] | None:
    blocker = facts.blocker
    if blocker is None:
        return None
    is_visible = may_see(blocker, principal)
    return {
        "id": blocker.id if is_visible else None,
        "state": blocker.state,
        "attempt": blocker.attempt,
        "runAt": blocker.run_at,
    }
