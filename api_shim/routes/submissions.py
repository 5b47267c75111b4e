"""From an HTTP request to a submission: headers read, body admitted, role checked. No database."""

from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import blake2b
from uuid import UUID

from api_shim.web import request_headers
from api_shim.web.http import JSON, MERGE_PATCH, Request
from models.ids import new_id, parse_id
from models.job import Door, Operation, Priority, Submission
from models.registry import Resource
from models.service import Admitted
from models.target import Target, aim

_FINGERPRINTED = (
    b"if-match",
    b"waybill-callback",
    b"waybill-expires-at",
    b"waybill-priority",
    b"waybill-run-at",
)
"""Headers that change what is asked. ``Prefer`` only changes how it is answered."""

_SPECIAL = frozenset(
    {*_FINGERPRINTED, b"idempotency-key", b"prefer", b"traceparent"},
)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a write asks for.

    Attributes:
        wait_seconds: How long the caller likes to wait for the outcome; None for not at all.
    """

    submission: Submission
    wait_seconds: int | None


async def read_wish(
    request: Request, resource: Resource, operation: Operation, fingerprint_key: bytes
) -> Wish:
    """Read a write request.

    Raises:
        Refusal: 400, 403, 404, 413 or 415, as the contract's table has it.
    """
    resource.service.check_role(request.principal, operation.action)
    named_id = None if operation is Operation.CREATE else instance_id(request, resource)
    if operation is not Operation.DELETE:
        request.check_media_type(MERGE_PATCH if operation is Operation.PATCH else JSON)
    body = await request.body()
    admitted = resource.service.admit(operation, body)
    wants = NO_WANTS
    if not _SPECIAL.isdisjoint(request.headers):
        wants = read_wants(request)
        if wants.idempotency_key is not None:
            wants = replace(wants, fingerprint=_fingerprint(request, body, fingerprint_key))
    target = aim(
        resource.type,
        operation,
        admitted,
        named_id=named_id,
        parent_id=parent_id(request, resource),
        if_match=wants.if_match,
    )
    submission = make_submission(request, resource, operation, target, admitted, wants)
    return Wish(submission, wants.wait_seconds)


def make_submission(
    request: Request,
    resource: Resource,
    operation: Operation,
    target: Target,
    admitted: Admitted,
    wants: "Wants",
) -> Submission:
    """What is handed to intake: one operation on one instance, as its caller wants it."""
    return Submission(
        job_id=new_id(),
        operation=operation,
        resource=resource.type.name,
        resource_id=target.resource_id,
        parent_id=target.parent_id,
        lane=target.lane,
        principal=request.principal,
        door=Door.HTTP,
        request_id=request.id,
        payload=admitted.payload,
        if_match=wants.if_match,
        idempotency_key=wants.idempotency_key,
        fingerprint=wants.fingerprint,
        priority=wants.priority,
        run_at=wants.run_at,
        expires_at=wants.expires_at,
        callback_endpoint_id=wants.callback_endpoint_id,
        traceparent=wants.traceparent,
    )


def instance_id(request: Request, resource: Resource) -> UUID:
    """The instance's id in the path.

    Raises:
        NotFound: It is no UUID, so there can be no such instance.
    """
    found = parse_id(request.parameters["id" if resource.parent is None else "partId"])
    if found is None:
        raise resource.service.absent()
    return found


def parent_id(request: Request, resource: Resource) -> UUID | None:
    """The id in the path of the parent, where the resource has one.

    Raises:
        NotFound: It is no UUID, so there can be no such parent.
    """
    return None if resource.parent is None else instance_id(request, resource.parent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wants:
    """What the headers of a write ask for."""

    wait_seconds: int | None = None
    idempotency_key: str | None = None
    fingerprint: bytes = b""
    if_match: int | None = None
    priority: Priority = Priority.NORMAL
    run_at: datetime | None = None
    expires_at: datetime | None = None
    callback_endpoint_id: UUID | None = None
    traceparent: str | None = None


NO_WANTS = Wants()


def read_wants(request: Request) -> Wants:
    """What the headers ask for, each read whole or refused.

    Raises:
        Invalid: One of them is malformed or repeated.
    """
    key = request.header(b"idempotency-key")
    match = request.header(b"if-match")
    run_at = request.header(b"waybill-run-at")
    expires = request.header(b"waybill-expires-at")
    callback = request.header(b"waybill-callback")
    priority = request.header(b"waybill-priority")
    return Wants(
        wait_seconds=request_headers.wait_seconds(request.listed_header(b"prefer")),
        idempotency_key=None if key is None else request_headers.idempotency_key(key),
        if_match=None if match is None else request_headers.if_match(match),
        priority=Priority.NORMAL if priority is None else request_headers.priority(priority),
        run_at=None if run_at is None else request_headers.time_header("Waybill-Run-At", run_at),
        expires_at=None if expires is None else request_headers.time_header("Waybill-Expires-At", expires),
        callback_endpoint_id=None if callback is None else request_headers.endpoint_id(callback),
        traceparent=request_headers.traceparent(request.header(b"traceparent")),
    )


def _fingerprint(request: Request, body: bytes, key: bytes) -> bytes:
    """Keyed digest of what is asked, headers included that change it."""
    headers = (request.headers.get(name, b"") for name in _FINGERPRINTED)
    return digest_of(key, request.method.encode(), request.path.encode("latin-1"), body, *headers)


def digest_of(key: bytes, *parts: bytes) -> bytes:
    """Keyed digest of parts; each with its length, so that none can pose as another."""
    digest = blake2b(key=key, digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()
