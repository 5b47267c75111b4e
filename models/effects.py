"""Effects on third parties, as a resource declares them. Nothing is sent here.

An effect belongs to a job that succeeded. It is written to the outbox in the transaction that applies the
job, and leaves from there: so it happens if and only if the change did, and rolling a batch back never
repeats one.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal
from uuid import UUID

import orjson

from models.errors import ConfigurationError
from models.job import Job, Operation, to_json

_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
_PATH = re.compile(r"/[!-~]*")
MAX_BODY_BYTES = 1024 * 1024
LONGEST_PATIENCE = timedelta(days=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceCall:
    """One request to a third party.

    Attributes:
        path: Below the service's URL, from its first ``/``; percent-encoded already.
        json: The body; None for none.
    """

    method: Literal["POST", "PUT", "PATCH", "DELETE"] = "POST"
    path: str
    json: Any = None

    def to_bytes(self) -> bytes:
        """As it is kept in the outbox, so that every attempt sends the same.

        Raises:
            ValueError: The path or the body cannot be sent.
        """
        if not _PATH.fullmatch(self.path):
            raise ValueError("the path must begin with / and be percent-encoded")
        kept = to_json({"method": self.method, "path": self.path, "json": self.json})
        if len(kept) > MAX_BODY_BYTES:
            raise ValueError(f"the call is over {MAX_BODY_BYTES} bytes")
        return kept


def service_call(kept: bytes) -> ServiceCall:
    """The call that :meth:`ServiceCall.to_bytes` kept."""
    return ServiceCall(**orjson.loads(kept))


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedChange:
    """What an effect may build its call from.

    Attributes:
        instance: As the job left it, by the resource's read schema; None after a delete.
        failure: Why the effect before it was given up; only in a fallback.
    """

    job_id: UUID
    operation: Operation
    resource: str
    resource_id: UUID
    version: int | None
    instance: Mapping[str, Any] | None
    failure: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ThirdPartyEffect:
    """A call to a third party that follows from a change.

    Attributes:
        name: Unique within its resource; kept in the outbox, so never renamed while calls wait.
        service: Which of ``WAYBILL_SERVICES`` is called.
        call: Builds the call, once for each job; None: this change needs none. Pure: it may run twice.
        operations: Which changes it follows from.
        give_up_after: How long it is tried, pauses of the service's breaker included.
        fallback: What is done instead where it was refused or given up.
    """

    name: str
    service: str
    call: Callable[[AppliedChange], ServiceCall | None]
    operations: frozenset[Operation] = field(default=frozenset({Operation.CREATE}))
    give_up_after: timedelta = LONGEST_PATIENCE
    fallback: "ThirdPartyEffect | None" = None

    def __post_init__(self) -> None:
        for name in (self.name, self.service):
            if not _NAME.fullmatch(name):
                raise ConfigurationError(f"effect {self.name!r}: names must look like {_NAME.pattern}")
        if not timedelta(0) < self.give_up_after <= LONGEST_PATIENCE:
            raise ConfigurationError(f"effect {self.name}: give_up_after must be within {LONGEST_PATIENCE}")
        if not self.operations or Operation.READ in self.operations:
            raise ConfigurationError(f"effect {self.name}: it follows from a change, so name one or more")

    @property
    def dependency(self) -> str:
        """What its service's breaker is kept for. No ``host:port`` looks like it: a name is no number."""
        return f"service:{self.service}"

    def chain(self) -> "Iterator[ThirdPartyEffect]":
        """This effect, its fallback, and that one's."""
        effect: ThirdPartyEffect | None = self
        while effect is not None:
            yield effect
            effect = effect.fallback


def applied_change(job: Job, failure: str | None) -> AppliedChange:
    """What a succeeded job changed."""
    is_delete = job.operation is Operation.DELETE
    return AppliedChange(
        job_id=job.id,
        operation=job.operation,
        resource=job.resource,
        resource_id=job.resource_id,
        version=job.version,
        instance=None if is_delete or job.result is None else orjson.loads(job.result),
        failure=failure,
    )
