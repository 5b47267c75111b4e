"""A job told over HTTP: accepted, finished as a synchronous API would say it, or polled. No database."""

from collections.abc import Sequence
from datetime import UTC, datetime
from math import ceil

from api_shim.web.http import Header, Response, json_response, problem_response
from models.errors import Conflict, Gone, internal_problem
from models.job import Job, JobState, Operation
from models.registry import Registry

BASE = "/api/v1"
MAX_RETRY_AFTER_SECONDS = 3600


def accepted(job: Job, headers: Sequence[Header] = ()) -> Response:
    """202: taken in and not final yet, or a replay."""
    location = (b"location", f"{BASE}/jobs/{job.id}".encode())
    answer = json_response(202, job.document(), (location, *headers))
    answer.headers.append((b"retry-after", b"%d" % retry_after_seconds(job)))
    return answer


def outcome(job: Job, place: str, request_id: str, headers: Sequence[Header] = ()) -> Response:
    """What a synchronous API would have said, of a job that is final; ``place`` is its instance's."""
    if job.state is JobState.SUCCEEDED:
        return _success(job, place, headers)
    if job.error is not None:
        problem = {**job.error, "requestId": request_id}
        return problem_response(problem, headers)
    if job.state is JobState.CANCELLED:
        return problem_response(Conflict("The job was cancelled").problem(request_id), headers)
    if job.state is JobState.EXPIRED:
        return problem_response(
            Gone("The job expired before it could be applied").problem(request_id), headers
        )
    return problem_response(internal_problem(request_id), headers)


def _success(job: Job, place: str, headers: Sequence[Header]) -> Response:
    if job.operation is Operation.DELETE or job.result is None:
        return Response(204, b"", headers)
    answer = json_response(200, job.result.encode(), headers)
    if job.version is not None:
        answer.headers.append((b"etag", b'"%d"' % job.version))
    if job.operation is Operation.CREATE:
        answer.status = 201
        answer.headers.append((b"location", place.encode()))
    return answer


def place_of(job: Job, registry: Registry) -> str:
    """The path of the instance that a job is about."""
    path = registry[job.resource].instance_path if job.resource in registry else f"{job.resource}/{{id}}"
    if job.parent_id is not None:
        path = path.replace("{id}", str(job.parent_id)).replace("{partId}", "{id}")
    return f"{BASE}/{path}".replace("{id}", str(job.resource_id))


def polled(job: Job) -> Response:
    """200: the job as it stands."""
    answer = json_response(200, job.document(), (entity_tag(job), NO_STORE))
    if not job.is_done:
        answer.headers.append((b"retry-after", b"%d" % retry_after_seconds(job)))
    return answer


def unchanged(job: Job) -> Response:
    """304: the caller has the job as it stands."""
    answer = Response(304, b"", (entity_tag(job), NO_STORE))
    if not job.is_done:
        answer.headers.append((b"retry-after", b"%d" % retry_after_seconds(job)))
    return answer


NO_STORE: Header = (b"cache-control", b"no-store")


def entity_tag(job: Job) -> Header:
    """The job's ETag: the number of its last change."""
    return (b"etag", b'"%d"' % job.sequence)


def retry_after_seconds(job: Job) -> int:
    """When asking again makes sense: at its time where it waits for one, else in a second."""
    if job.run_at is None or job.is_done:
        return 1
    seconds = ceil((job.run_at - datetime.now(UTC)).total_seconds())
    return min(max(seconds, 1), MAX_RETRY_AFTER_SECONDS)
