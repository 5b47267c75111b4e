"""A job: its states, the moves between them, and its wire document. No storage; see ``ledger.py``.

::

                    ┌──────────┐ due   ┌────────┐ applied      ┌───────────┐
     accept ───────▶│scheduled │──────▶│ queued │─────────────▶│ succeeded │
        │           └──────────┘       └────────┘ refused      ├───────────┤
        └──────────────────────────────▶│   ▲  │──────────────▶│  failed   │
                              transient │   │  │               ├───────────┤
                                fault   ▼   │  │ withdrawn     │ cancelled │
                                ┌──────────┐│  │ (any open) ──▶├───────────┤
                                │ retrying ││  │ too late ────▶│  expired  │
                                └──────────┘│  │               └───────────┘
                                    │       │  │ exhausted     ┌───────────┐
                                    └───────┼──┴──────────────▶│   dead    │
                                            └──────redrive─────┤           │
                                                               └───────────┘
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import orjson

from models.identity.principals import Action, Principal


class JobState(StrEnum):
    """Where a job stands. Stored and sent: never renamed."""

    SCHEDULED = "scheduled"
    QUEUED = "queued"
    RETRYING = "retrying"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    DEAD = "dead"

    @property
    def is_done(self) -> bool:
        """Whether an outcome stands. A ``dead`` job rests: only a redrive moves it again."""
        return self in FINAL


_S = JobState
FINAL = frozenset({_S.SUCCEEDED, _S.FAILED, _S.CANCELLED, _S.EXPIRED, _S.DEAD})
OPEN = frozenset({_S.QUEUED, _S.RETRYING})
"""States in which a job waits in its lane."""

TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    _S.SCHEDULED: frozenset({_S.QUEUED, _S.CANCELLED, _S.EXPIRED}),
    _S.QUEUED: frozenset({_S.SUCCEEDED, _S.FAILED, _S.RETRYING, _S.CANCELLED, _S.EXPIRED, _S.DEAD}),
    _S.RETRYING: frozenset(
        {_S.QUEUED, _S.RETRYING, _S.SUCCEEDED, _S.FAILED, _S.CANCELLED, _S.EXPIRED, _S.DEAD}
    ),
    _S.SUCCEEDED: frozenset(),
    _S.FAILED: frozenset(),
    _S.CANCELLED: frozenset(),
    _S.EXPIRED: frozenset(),
    _S.DEAD: frozenset({_S.QUEUED}),
}


class Operation(StrEnum):
    """What a job does to its instance."""

    CREATE = "create"
    REPLACE = "replace"
    PATCH = "patch"
    DELETE = "delete"
    READ = "read"

    @property
    def action(self) -> Action:
        """The permission that it needs."""
        return _ACTIONS[self]


_ACTIONS = {
    Operation.CREATE: Action.WRITE,
    Operation.REPLACE: Action.WRITE,
    Operation.PATCH: Action.WRITE,
    Operation.DELETE: Action.DELETE,
    Operation.READ: Action.READ,
}


class Priority(StrEnum):
    """Which queue announces a job; each has its own reserved capacity."""

    HIGH = "high"
    NORMAL = "normal"
    BULK = "bulk"


class Door(StrEnum):
    """Where a job came in. Idempotency keys are scoped to a door."""

    HTTP = "http"
    AMQP = "amqp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A validated request to be accepted into the ledger.

    Attributes:
        payload: JSON text (UTF-8) that passed the resource's schema; None for delete and read.
        parent_id: The parent's instance, where the resource has a parent.
        lane: Key of the lane, see :meth:`models.resource_type.ResourceType.lane`.
        if_match: The version that the caller demands; None for any.
        fingerprint: Keyed digest of what the caller asked; compared when its key comes again.
        run_at: Not before this time (aware UTC).
        expires_at: Not after this time (aware UTC).
        reply_to: AMQP queue that gets the outcome.
    """

    job_id: UUID
    operation: Operation
    resource: str
    resource_id: UUID
    lane: int
    principal: Principal
    door: Door
    request_id: str
    payload: bytes | None = None
    if_match: int | None = None
    idempotency_key: str | None = None
    fingerprint: bytes = b""
    priority: Priority = Priority.NORMAL
    run_at: datetime | None = None
    expires_at: datetime | None = None
    callback_endpoint_id: UUID | None = None
    reply_to: str | None = None
    correlation_id: str | None = None
    traceparent: str | None = None
    parent_id: UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as the ledger holds it.

    Attributes:
        result: JSON text of the instance as this job left it; None until it succeeded.
        parent_id: The parent's instance, where the resource has a parent.
        sequence: Ledger-wide number of this job's last change; its ETag and event id.
        attempts: Those that failed, in their order: ``generation, attempt, at, reason``; None where none did.
        generation: 1, and one more for each redrive.
    """

    id: UUID
    state: JobState
    operation: Operation
    resource: str
    resource_id: UUID
    principal_id: UUID
    attempt: int
    priority: Priority
    created_at: datetime
    run_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    version: int | None
    result: str | None
    error: dict[str, Any] | None
    request_id: str
    sequence: int
    attempts: list[dict[str, Any]] | None = None
    generation: int = 1
    parent_id: UUID | None = None

    @property
    def is_done(self) -> bool:
        """Whether an outcome stands."""
        return self.state.is_done

    def document(self, *, with_result: bool = True) -> dict[str, Any]:
        """The wire document; hand it to :func:`models.job.to_json`."""
        document: dict[str, Any] = {
            "id": self.id,
            "state": self.state,
            "done": self.state.is_done,
            "operation": self.operation,
            "resource": self.resource,
            "resourceId": self.resource_id,
            "attempt": self.attempt,
            "priority": self.priority,
            "createdAt": self.created_at,
            "runAt": self.run_at,
            "finishedAt": self.finished_at,
            "expiresAt": self.expires_at,
        }
        if self.version is not None:
            document["version"] = self.version
        if self.result is not None and with_result:
            document["result"] = orjson.Fragment(self.result)
        if self.error is not None:
            document["error"] = self.error
        if self.attempts:
            document["attempts"] = self.attempts
        if self.generation > 1:
            document["generation"] = self.generation
        document["resultUrl"] = f"/api/v1/jobs/{self.id}/result"
        document["requestId"] = self.request_id
        document["sequence"] = self.sequence
        return document


def to_json(document: Any) -> bytes:
    """Write a document: times as RFC 3339 in UTC with ``Z``, ids and decimals as text."""
    return orjson.dumps(document, default=str, option=orjson.OPT_UTC_Z)
