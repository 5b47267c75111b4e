"""GET a job's transitions as server-sent events: the present state or what was missed, then as it happens."""

import random
import re
from collections.abc import AsyncGenerator, Iterator

from api_shim.changes.audience import Audience
from api_shim.changes.watches import Watches
from api_shim.description import words
from api_shim.gate.authentication import Authentication
from api_shim.routes.jobs import OwnJob, may_see
from api_shim.routes.outcomes import BASE, NO_STORE
from api_shim.web.http import Request, Response, StreamResponse
from api_shim.web.router import Answer, Limit, Route
from models.errors import Invalid, Refusal, Transient
from models.job import Job, to_json

HEARTBEAT_SECONDS = 15.0
_SEQUENCE = re.compile(r"[0-9]{1,18}")
_HEADERS = (
    (b"content-type", b"text/event-stream"),
    NO_STORE,
    (b"x-accel-buffering", b"no"),  # nginx would gather events into pages
)


class Events:
    """The route of event streams.

    Args:
        own: Reads the job in the path, which must be the caller's.
        watches: Follow the job.
        audience: Bounds the streams.
        authentication: Asked again now and then: a stream does not outlive its token.
        heartbeat_seconds: Comments are sent this often while nothing happens.
    """

    def __init__(
        self,
        own: OwnJob,
        watches: Watches,
        audience: Audience,
        authentication: Authentication,
        *,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._own = own
        self._watches = watches
        self._audience = audience
        self._authentication = authentication
        self._heartbeat_seconds = heartbeat_seconds

    async def get(self, request: Request) -> Response:
        """The stream; 204 tells an ``EventSource`` that resumes after the end not to come again."""
        after = _last_event_id(request.header(b"last-event-id"))
        job = await self._own(request)
        if after is not None and job.is_done and after >= job.sequence:
            return Response(204, b"", (NO_STORE,))
        leave = self._audience.admit(request.principal, "events")
        return StreamResponse(200, self._chunks(request, job, after), _HEADERS, on_close=leave)

    async def _chunks(self, request: Request, job: Job, after: int | None) -> AsyncGenerator[bytes, None]:
        yield _retry_hint()
        if after is None:
            yield _event(job)
            if job.is_done:
                return
        with self._watches.following(job.id, job.sequence if after is None else after) as watch:
            while not self._watches.is_closed:
                steps = await watch.next(self._heartbeat_seconds)
                if steps:
                    yield b"".join(map(_event, steps))
                    if steps[-1].is_done:
                        return
                elif not self._watches.is_closed:
                    if not await self._may_go_on(request, job):
                        return
                    yield b": heartbeat\n\n"
        yield _retry_hint()

    async def _may_go_on(self, request: Request, job: Job) -> bool:
        try:
            return may_see(job, await self._authentication.principal_of(request))
        except Refusal:
            return False
        except Transient:  # it cannot be told now; the next heartbeat asks again
            return True

    def routes(self) -> Iterator[Route]:
        """The one route."""
        yield Route(
            method="GET",
            path=f"{BASE}/jobs/{{id}}/events",
            handle=self.get,
            operation_id="stream_job_events",
            summary="The job's transitions as server-sent events, until the final one",
            tag="jobs",
            permission="own, admin: all",
            limit=Limit.JOBS,
            parameters=(words.LAST_EVENT_ID,),
            answers={
                200: Answer(
                    "`id:` is the sequence, `data:` the job; comments as heartbeats",
                    "Events",
                    ("Cache-Control",),
                    "text/event-stream",
                ),
                204: Answer("You have seen the final event: do not come again", None, ("Cache-Control",)),
            },
            errors=(404, 410, 429),
        )


def _last_event_id(value: str | None) -> int | None:
    if not value:  # an EventSource without one sends none; an empty one means the same
        return None
    if not _SEQUENCE.fullmatch(value):
        raise Invalid("Last-Event-ID must be the id of an event: a whole number")
    return int(value)


def _event(job: Job) -> bytes:
    return b"id: %d\ndata: %b\n\n" % (job.sequence, to_json(job.document()))


def _retry_hint() -> bytes:
    """When to come again after the connection broke; not all at the same moment."""
    return b"retry: %d\n\n" % random.randint(1_000, 3_000)  # noqa: S311 - spreads load, guards nothing
