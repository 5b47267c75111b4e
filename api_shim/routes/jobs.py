"""GET jobs, one or many, their results, and cancelling. A job's states are the ledger's business."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol
from uuid import UUID

from api_shim.announcing import JobAnnouncer
from api_shim.changes.waiters import Waiters
from api_shim.description import words
from api_shim.routes import outcomes
from api_shim.routes.outcomes import BASE, NO_STORE
from api_shim.routes.paging import Paging
from api_shim.web import query, request_headers
from api_shim.web.batcher import Batcher
from api_shim.web.http import Request, Response
from api_shim.web.router import Answer, Limit, Route
from api_shim.web.threads import Threads
from models import metrics
from models.cursor import Cursors
from models.database import Database
from models.failpoints import Step
from models.identity.principals import Principal
from models.ids import parse_id
from models.job import Job, JobState
from models.job_query import JobQuery
from models.ledger import Ledger
from models.registry import Registry
from models.retention import absence

OwnJob = Callable[[Request], Awaitable[Job]]
"""The job in the path, which must be the caller's: :func:`own_job`, given what it needs."""

_LONGEST_NAME = 63


class Jobs:
    """The routes that tell of jobs.

    Args:
        database: For lists and cancelling.
        ledger: Finds and cancels.
        own: The job in the path.
        threads: Where lists are read and jobs cancelled.
        waiters: Wait for a change where the caller likes to.
        cursors: Sign the places in a list.
        announcer: Told of deliveries that cancelling made.
        registry: Tells where the instances are that jobs made.
    """

    def __init__(
        self,
        database: Database,
        ledger: Ledger,
        own: OwnJob,
        threads: Threads,
        waiters: Waiters,
        cursors: Cursors,
        announcer: JobAnnouncer,
        registry: Registry,
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._own = own
        self._threads = threads
        self._waiters = waiters
        self._cursors = cursors
        self._announcer = announcer
        self._registry = registry

    async def get(self, request: Request) -> Response:
        """Poll, or long-poll: with ``Prefer: wait`` and ``If-None-Match`` until the job has changed."""
        job = await self._own(request)
        wait = request_headers.wait_seconds(request.listed_header(b"prefer"))
        seen = request.listed_header(b"if-none-match")
        is_known = request_headers.matches_any(seen, job.sequence)
        if wait is not None and not job.is_done and (seen is None or is_known):
            job = await self._waiters.wait(job, wait, after=job.sequence if is_known else None)
            is_known = request_headers.matches_any(seen, job.sequence)
        answer = outcomes.unchanged(job) if is_known else outcomes.polled(job)
        if wait is not None:
            answer.headers.append((b"preference-applied", b"wait=%d" % wait))
        return answer

    async def result(self, request: Request) -> Response:
        """The outcome as a synchronous API would have said it; 202 until there is one."""
        job = await self._own(request)
        wait = request_headers.wait_seconds(request.listed_header(b"prefer"))
        headers = [NO_STORE]
        if wait is not None:
            job = await self._waiters.wait(job, wait)
            headers.append((b"preference-applied", b"wait=%d" % wait))
        if job.is_done:
            return outcomes.outcome(job, outcomes.place_of(job, self._registry), request.id, headers)
        return outcomes.accepted(job, headers)

    async def cancel(self, request: Request) -> Response:
        """Withdraw a job that is not final: 200, or 409 where it is."""
        job = await self._own(request)
        cancelled, deliveries = await self._threads.call(self._cancel, job.id)
        self._announcer.deliveries(deliveries)
        return outcomes.polled(cancelled)

    async def page(self, request: Request) -> Response:
        """One page of jobs, newest first: the caller's own, an admin's all."""
        principal = request.principal
        given = request.query
        question = [
            "jobs",
            str(principal.id),
            *(given.get(parameter.name) for parameter in _FILTERS),
        ]
        paging = Paging(request, self._cursors, question)
        wanted = JobQuery(
            principal_id=None if principal.is_admin else principal.id,
            state=query.choice(given, "state", _STATES),
            resource=query.words(given, "resource", _LONGEST_NAME),
            resource_id=query.identifier(given, "resourceId"),
            created_after=query.moment(given, "createdAfter"),
            created_before=query.moment(given, "createdBefore"),
            before=paging.after,
            limit=paging.limit + 1,
        )
        jobs = await self._threads.call(self._read_page, wanted)
        return paging.answer(jobs, Job.document, lambda job: [str(job.id)])

    # ---- in a thread ---------------------------------------------------------------------

    def _cancel(self, job_id: UUID) -> tuple[Job, list[UUID]]:
        with self._database.transaction(Step.CANCEL) as connection:
            deliveries = self._ledger.cancel(connection, job_id)
            job = self._ledger.find(connection, [job_id])[job_id]
        metrics.JOBS_FINISHED[job.state].inc()
        return job, deliveries

    def _read_page(self, wanted: JobQuery) -> list[Job]:
        with self._database.snapshot() as connection:
            return self._ledger.page(connection, wanted)

    def routes(self) -> Iterator[Route]:
        """The job routes."""
        job = Answer("The job", "Job", ("ETag", "Retry-After", "Cache-Control", "Preference-Applied"))
        yield Route(
            method="GET",
            path=f"{BASE}/jobs",
            handle=self.page,
            operation_id="list_jobs",
            summary="List jobs, newest first",
            tag="jobs",
            permission="own, admin: all",
            limit=Limit.JOBS,
            parameters=(*_FILTERS, words.LIMIT, words.CURSOR),
            answers={200: Answer("One page", "JobPage", ("Cache-Control",))},
        )
        yield Route(
            method="GET",
            path=f"{BASE}/jobs/{{id}}",
            handle=self.get,
            operation_id="get_job",
            summary="Poll a job; with Prefer: wait and If-None-Match, long-poll it",
            tag="jobs",
            permission="own, admin: all",
            limit=Limit.JOBS,
            parameters=(words.PREFER, words.IF_NONE_MATCH),
            answers={200: job, 304: Answer("It has not changed", None, ("ETag", "Retry-After"))},
            errors=(404, 410),
        )
        yield Route(
            method="GET",
            path=f"{BASE}/jobs/{{id}}/result",
            handle=self.result,
            operation_id="get_job_result",
            summary="The job's outcome, as a synchronous API would have said it",
            tag="jobs",
            permission="own, admin: all",
            limit=Limit.JOBS,
            parameters=(words.PREFER,),
            answers={
                200: Answer("Replaced, changed or read: the instance", "Instance", ("ETag", "Cache-Control")),
                201: Answer("Created: the instance", "Instance", ("ETag", "Location", "Cache-Control")),
                202: Answer("Not final yet: the job", "Job", ("Location", "Retry-After", "Cache-Control")),
                204: Answer("Deleted", None, ("Cache-Control",)),
            },
            errors=(404, 409, 410, 412, 422),
        )
        yield Route(
            method="POST",
            path=f"{BASE}/jobs/{{id}}/cancel",
            handle=self.cancel,
            operation_id="cancel_job",
            summary="Withdraw a job that is not final",
            tag="jobs",
            permission="own, admin: all",
            limit=Limit.CONTROL,
            answers={200: Answer("Cancelled: the job", "Job", ("ETag", "Cache-Control"))},
            errors=(404, 409, 410),
        )


_FILTERS = (
    words.JOB_STATE,
    words.JOB_RESOURCE,
    words.JOB_RESOURCE_ID,
    words.JOB_CREATED_AFTER,
    words.JOB_CREATED_BEFORE,
)
_STATES = tuple(str(state) for state in JobState)


async def own_job(polls: Batcher[UUID, Job | None], retention: timedelta, request: Request) -> Job:
    """The job in the path, which must be the caller's (an admin's: anybody's).

    Args:
        polls: Reads it together with everybody else's (:func:`poll_batcher`).
        retention: How long finished jobs are kept; zero: for good.
        request: Whose path names it.

    Raises:
        NotFound: It was never accepted, or is somebody else's.
        Gone: By its id it is past retention, whoever's it was.
    """
    identifier = parse_id(request.parameters["id"])
    job = None if identifier is None else await polls.call(identifier)
    if job is None or not may_see(job, request.principal):
        raise absence(identifier, retention, datetime.now(UTC))
    return job


class _Owned(Protocol):
    @property
    def principal_id(self) -> UUID: ...


def may_see(job: _Owned, principal: Principal) -> bool:
    """Whether the job is the caller's to see: the one who handed it in, and every admin."""
    return job.principal_id == principal.id or principal.is_admin


def poll_batcher(database: Database, ledger: Ledger) -> Batcher[UUID, Job | None]:
    """Polls that wait at the same moment share one query."""

    def find(ids: Sequence[UUID]) -> Sequence[Job | None]:
        with database.snapshot() as connection:
            jobs = ledger.find(connection, ids)
        return [jobs.get(one) for one in ids]

    return Batcher("polls", find)
