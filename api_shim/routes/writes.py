"""POST, PUT, PATCH and DELETE of every resource: each write becomes a job. No business rules."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from uuid import UUID

from api_shim.announcing import JobAnnouncer
from api_shim.changes.waiters import Waiters
from api_shim.description.words import operation_id, write_answers, write_errors, write_headers
from api_shim.routes import outcomes
from api_shim.routes.submissions import read_wish
from api_shim.web.batcher import Batcher
from api_shim.web.http import JSON, MERGE_PATCH, Header, Request, Response
from api_shim.web.router import Limit, Route
from api_shim.web.threads import Threads
from models.errors import Refusal
from models.identity.principals import permission_needed
from models.intake import Answer, Intake, Receipt
from models.job import Door, JobState, Operation, Priority, Submission
from models.metrics import INTAKE_BATCH_SIZE, JOBS_ACCEPTED
from models.registry import Registry, Resource

_REPLAYED: Header = (b"idempotent-replayed", b"true")


class Writes:
    """The routes that change something.

    Args:
        registry: The resources served.
        intake: Accepts what was read, together with everybody else's (:func:`intake_batcher`).
        waiters: Wait for the outcome where the caller likes to.
        slow: Where secrets are hashed: it would hold up everybody else on the event loop.
        fingerprint_key: Keys the digests that idempotency keys are compared by.
    """

    def __init__(
        self,
        registry: Registry,
        intake: Batcher[Submission, Answer],
        waiters: Waiters,
        slow: Threads,
        fingerprint_key: bytes,
    ) -> None:
        self._registry = registry
        self._intake = intake
        self._waiters = waiters
        self._slow = slow
        self._fingerprint_key = fingerprint_key

    async def write(self, resource: Resource, operation: Operation, request: Request) -> Response:
        """Take a write in; say 202, or its outcome where the caller waits and it comes in time."""
        wish = await read_wish(request, resource, operation, self._fingerprint_key)
        submission = wish.submission
        if resource.service.has_secrets and submission.payload is not None:
            payload = await self._slow.call(
                resource.service.secured, submission.payload, submission.resource_id
            )
            submission = replace(submission, payload=payload)
        receipt = await self._intake.call(submission)
        if isinstance(receipt, Refusal):
            raise receipt.with_traceback(None)  # one refusal may answer many requests
        job = receipt.job
        headers: list[Header] = [_REPLAYED] if receipt.is_replay else []
        if wish.wait_seconds is None:
            return outcomes.accepted(job, headers)
        headers.append((b"preference-applied", b"wait=%d" % wish.wait_seconds))
        job = await self._waiters.outcome(job, wish.wait_seconds)
        if job.is_done:
            return outcomes.outcome(job, outcomes.place_of(job, self._registry), request.id, headers)
        return outcomes.accepted(job, headers)

    def routes(self) -> Iterator[Route]:
        """The write routes of every resource."""
        for resource in self._registry:
            some, one = (f"{outcomes.BASE}/{path}" for path in (resource.path, resource.instance_path))
            yield self._route(resource, Operation.CREATE, "POST", some, "Create", JSON)
            yield self._route(resource, Operation.REPLACE, "PUT", one, "Replace", JSON)
            yield self._route(resource, Operation.PATCH, "PATCH", one, "Change parts of", MERGE_PATCH)
            yield self._route(resource, Operation.DELETE, "DELETE", one, "Delete", frozenset())

    def _route(
        self,
        resource: Resource,
        operation: Operation,
        method: str,
        path: str,
        verb: str,
        media_types: frozenset[str],
    ) -> Route:
        name = resource.type.name
        schema = {"create": "Create", "replace": "Update", "patch": "Patch"}.get(operation, "")
        return Route(
            method=method,
            path=path,
            handle=partial(self.write, resource, operation),
            operation_id=operation_id(operation, resource.type.singular),
            summary=f"{verb} one of {name}, as a job",
            tag=name,
            permission=f"{name}:{permission_needed(resource.type.permissions, operation.action)}",
            limit=Limit.DELETE if operation is Operation.DELETE else Limit.WRITE,
            parameters=write_headers(operation, has_version=resource.type.has_version),
            body=dict.fromkeys(sorted(media_types), f"{name}.{schema}"),
            answers=write_answers(operation, f"{name}.Read", has_version=resource.type.has_version),
            errors=write_errors(operation, has_parent=resource.parent is not None),
        )


def intake_batcher(intake: Intake, announcer: JobAnnouncer) -> Batcher[Submission, Answer]:
    """Group commit: accepts what waits in one transaction, then announces it, off the event loop."""

    def accept(batch: Sequence[Submission]) -> Sequence[Answer]:
        INTAKE_BATCH_SIZE.observe(len(batch))
        answers = intake.accept(batch)
        announcer.jobs(fresh_jobs(answers))
        return answers

    return Batcher("intake", accept)


def fresh_jobs(answers: Sequence[Answer]) -> dict[Priority, list[UUID]]:
    """Jobs to announce now, by priority: new ones that are due."""
    due: dict[Priority, list[UUID]] = {}
    accepted = 0
    for answer in answers:
        if isinstance(answer, Receipt) and not answer.is_replay:
            accepted += 1
            if answer.job.state is JobState.QUEUED:
                due.setdefault(answer.job.priority, []).append(answer.job.id)
    JOBS_ACCEPTED[Door.HTTP].inc(accepted)
    return due
