"""POST /bulk: up to 1,000 operations taken in by one transaction, each with an answer of its own."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from pydantic import Field, JsonValue, ValidationError

from api_shim.announcing import JobAnnouncer
from api_shim.changes.waiters import Waiters
from api_shim.description.words import BULK_HEADERS
from api_shim.routes import outcomes
from api_shim.routes.submissions import Wants, digest_of, make_submission, read_wants
from api_shim.routes.writes import fresh_jobs
from api_shim.web import request_headers
from api_shim.web.http import JSON, Header, Request, Response, json_response
from api_shim.web.router import Answer, Limit, Route
from api_shim.web.threads import Threads
from models import strict_json
from models.capacity import Capacity
from models.errors import Detail, Invalid, NotFound, Refusal
from models.ids import parse_id
from models.intake import Intake, Receipt
from models.job import Operation, Submission, to_json
from models.registry import Registry
from models.schema import Schema, refusal
from models.service import MAX_SECRETS
from models.target import aim

MAX_OPERATIONS = 1000
MAX_BULK_BYTES = 8 * 1024 * 1024
_WRITES = (Operation.CREATE, Operation.REPLACE, Operation.PATCH, Operation.DELETE)
_LONGEST_KEY = 240
"""Of a key for the whole request: each operation's own key is this one and its place."""


class BulkOperation(Schema):
    """One operation of a bulk."""

    operation: Operation = Field(description="create, replace, patch or delete", examples=["create"])
    resource: str = Field(min_length=1, max_length=63, examples=["entities"])
    id: str | None = Field(None, description="of the instance; optional at create")
    parent_id: str | None = Field(None, description="of its parent, where the resource has one")
    if_match: int | None = Field(None, ge=0, lt=2**63, description="the version that must be the present one")
    idempotency_key: str | None = Field(None, min_length=1, max_length=255, pattern="^[ -~]+$")
    data: dict[str, JsonValue] | None = Field(None, examples=[{"name": "Ada's order"}])


class BulkRequest(Schema):
    """Body of POST /bulk."""

    operations: list[BulkOperation] = Field(min_length=1, max_length=MAX_OPERATIONS)


class Bulk:
    """The route.

    Args:
        registry: The resources served.
        intake: Accepts the operations, all in one transaction.
        announcer: Told of the jobs that they became.
        waiters: Wait for the outcomes where the caller likes to.
        threads: Where a bulk is read and taken in: it would hold up everybody else on the event loop.
        fingerprint_key: Keys the digests that idempotency keys are compared by.
        capacity: Told of how many there were.
    """

    def __init__(
        self,
        registry: Registry,
        intake: Intake,
        announcer: JobAnnouncer,
        waiters: Waiters,
        threads: Threads,
        fingerprint_key: bytes,
        capacity: Capacity,
    ) -> None:
        self._registry = registry
        self._intake = intake
        self._announcer = announcer
        self._waiters = waiters
        self._threads = threads
        self._fingerprint_key = fingerprint_key
        self._capacity = capacity

    async def submit(self, request: Request) -> Response:
        """202 with a job for each operation, or the problem that it is refused with, in its place."""
        request.check_media_type(JSON)
        wants = read_wants(request)
        if wants.if_match is not None:
            raise Invalid("If-Match does not go with a bulk: give each operation its ifMatch")
        is_late = wants.expires_at is not None and wants.expires_at <= datetime.now(UTC)
        if is_late and wants.idempotency_key is None:  # with one each place may be a job that there is
            raise Invalid("Waybill-Expires-At has passed already")
        if wants.idempotency_key is not None and len(wants.idempotency_key) > _LONGEST_KEY:
            raise Invalid(f"Idempotency-Key of a bulk must have at most {_LONGEST_KEY} characters")
        body = await request.body(MAX_BULK_BYTES)
        answers = await self._threads.call(self._take_in, request, body, wants)
        headers: list[Header] = []
        receipts = [one for one in answers if isinstance(one, Receipt)]
        if receipts and all(one.is_replay for one in answers if isinstance(one, Receipt)):
            headers.append((b"idempotent-replayed", b"true"))
        jobs = {receipt.job.id: receipt.job for receipt in receipts}
        if wants.wait_seconds is not None:
            jobs = await self._waiters.outcomes(jobs.values(), wants.wait_seconds)
            headers.append((b"preference-applied", b"wait=%d" % wants.wait_seconds))
        places = [
            {"index": place, "error": answer.problem(request.id)}
            if isinstance(answer, Refusal)
            else jobs[answer.job.id].document()
            for place, answer in enumerate(answers)
        ]
        return json_response(202, {"jobs": places}, headers)

    # ---- in a thread ---------------------------------------------------------------------

    def _take_in(self, request: Request, body: bytes, wants: Wants) -> list[Receipt | Refusal]:
        answers: list[Receipt | Refusal | None] = []
        submissions: list[Submission] = []
        secrets = 0
        for place, item in enumerate(_operations(body)):
            try:
                submission = self._submission(request, place, item, wants)
                service = self._registry[submission.resource].service
                if service.has_secrets and submission.payload is not None:
                    secrets += 1
                    if secrets > MAX_SECRETS:
                        raise Invalid(
                            f"A bulk takes at most {MAX_SECRETS} writes with secrets: send the rest later"
                        )
                    payload = service.secured(submission.payload, submission.resource_id)
                    submission = replace(submission, payload=payload)
                submissions.append(submission)
                answers.append(None)
            except Refusal as refused:
                answers.append(refused)
        self._capacity.count(len(submissions) - 1)  # one of them was, before the body was read
        accepted = self._intake.accept(submissions) if submissions else []
        self._announcer.jobs(fresh_jobs(accepted))
        remaining = iter(accepted)
        return [next(remaining) if answer is None else answer for answer in answers]

    def _submission(self, request: Request, place: int, item: Any, wants: Wants) -> Submission:
        """One operation, checked as a request of its own would be.

        Raises:
            Refusal: As that request's would be.
        """
        text = to_json(item)
        try:
            given = BulkOperation.model_validate_json(text, strict=True, by_alias=True, by_name=False)
        except ValidationError as error:
            raise refusal(error) from None
        if given.operation not in _WRITES:
            raise Invalid(f"The operation must be one of {', '.join(_WRITES)}")
        if given.resource not in self._registry:
            raise NotFound("There is no such resource")
        resource = self._registry[given.resource]
        resource.service.check_role(request.principal, given.operation.action)
        data = b"" if given.data is None else to_json(item["data"])
        admitted = resource.service.admit(given.operation, data)
        target = aim(
            resource.type,
            given.operation,
            admitted,
            named_id=_uuid("id", given.id),
            parent_id=_uuid("parentId", given.parent_id),
            if_match=given.if_match,
        )
        own = replace(wants, if_match=given.if_match)
        key = given.idempotency_key or (wants.idempotency_key and f"{wants.idempotency_key}#{place}")
        if key is not None:
            asked = to_json([own.priority, own.run_at, own.expires_at, own.callback_endpoint_id])
            fingerprint = digest_of(self._fingerprint_key, b"bulk", text, asked)
            own = replace(own, idempotency_key=request_headers.idempotency_key(key), fingerprint=fingerprint)
        return make_submission(request, resource, given.operation, target, admitted, own)

    def routes(self) -> Iterator[Route]:
        """The route."""
        yield Route(
            method="POST",
            path=f"{outcomes.BASE}/bulk",
            handle=self.submit,
            operation_id="submit_bulk",
            summary=f"Hand in up to {MAX_OPERATIONS:,} operations; each becomes a job or is refused",
            tag="bulk",
            permission="per item",
            limit=Limit.BULK,
            parameters=BULK_HEADERS,
            body={"application/json": BulkRequest},
            answers={
                202: Answer(
                    "For each operation, in its place: the job, or why it is refused",
                    "BulkAnswer",
                    ("Idempotent-Replayed", "Preference-Applied"),
                )
            },
            errors=(413, 415),
        )


def _operations(body: bytes) -> Sequence[Any]:
    """The operations as they were given.

    Raises:
        Invalid: The document around them is not what it should be.
    """
    document = strict_json.parse(body)
    if not isinstance(document, dict) or set(document) != {"operations"}:
        raise Invalid('The body must be a JSON object {"operations": [...]}')
    operations = document["operations"]
    if not isinstance(operations, list) or not 1 <= len(operations) <= MAX_OPERATIONS:
        raise Invalid(f"operations must be an array of 1 to {MAX_OPERATIONS:,} operations")
    return operations


def _uuid(member: str, given: str | None) -> UUID | None:
    """An id as it was given.

    Raises:
        Invalid: It is no UUID.
    """
    found = parse_id(given) if given is not None else None
    if given is not None and found is None:
        raise Invalid(f"The {member} is not a UUID", details=[Detail(member, "must be a UUID")])
    return found
