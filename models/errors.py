"""The error tree, and the problem document that tells a caller what went wrong. No HTTP, no AMQP.

::

    WaybillError
    ├── Refusal                the caller's fault: has status and code, is never retried
    │   ├── Invalid                 400 Validation
    │   ├── Unauthorized            401 Unauthorized
    │   ├── Forbidden               403 Forbidden
    │   ├── NotFound                404 NotFound
    │   ├── MethodNotAllowed        405 MethodNotAllowed
    │   ├── Conflict                409 Conflict
    │   ├── Gone                    410 Gone
    │   ├── PreconditionFailed      412 PreconditionFailed
    │   ├── PayloadTooLarge         413 PayloadTooLarge
    │   ├── UnsupportedMediaType    415 UnsupportedMediaType
    │   ├── Unprocessable           422 Unprocessable
    │   ├── RateLimited             429 RateLimit
    │   └── Unavailable             503 Unavailable
    ├── Transient              passes by itself: retried from a fresh read
    │   ├── DatabaseUnavailable     lost, refused or timed-out connection
    │   ├── Contention              deadlock, serialization failure, lock time-out, stale read
    │   ├── BrokerUnavailable       RabbitMQ refused, timed out or returned the message
    │   └── Unfamiliar              of another version; a worker of that version may take it
    └── Permanent              recorded, never retried
        └── ConfigurationError      a setting is wrong; the message says how to mend it
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

PROBLEM_MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True, slots=True)
class Detail:
    """One reason, tied to the member it is about (a dotted path; empty for the whole document)."""

    field: str
    reason: str


class WaybillError(Exception):
    """The root of everything Waybill raises on purpose."""


class Refusal(WaybillError):
    """The caller's fault, or the caller's turn to wait. Never retried by us.

    Args:
        message: One sentence for the caller. Must hold no secret, SQL or stack.
        details: Reasons tied to members, at most a few dozen.
        retry_after: Whole seconds after which asking again makes sense.
        extra: Further members of the problem document, in wire spelling.
    """

    status: ClassVar[int] = 400
    code: ClassVar[str] = "Validation"
    title: ClassVar[str] = "The request is not valid"

    def __init__(
        self,
        message: str,
        *,
        details: Sequence[Detail] = (),
        retry_after: int | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details = tuple(details)
        self.retry_after = retry_after
        self.extra = dict(extra or {})

    def problem(self, request_id: str | None = None) -> dict[str, Any]:
        """The problem document (RFC 9457) with the platform's own members, ready for JSON."""
        document: dict[str, Any] = {
            "type": f"urn:waybill:problem:{self.code}",
            "title": self.title,
            "status": self.status,
            "error": self.code,
            "message": self.message,
        }
        if self.details:
            document["details"] = [{"field": d.field, "reason": d.reason} for d in self.details]
        document["requestId"] = request_id
        if self.retry_after is not None:
            document["retryAfter"] = self.retry_after
        document.update(self.extra)
        return document


class Invalid(Refusal):
    """400: malformed, or against the schema."""


class Unauthorized(Refusal):
    """401: no valid credentials."""

    status, code, title = 401, "Unauthorized", "Authentication is required"


class Forbidden(Refusal):
    """403: known, and not allowed."""

    status, code, title = 403, "Forbidden", "Not allowed"


class NotFound(Refusal):
    """404: unknown, or not yours."""

    status, code, title = 404, "NotFound", "Not found"


class MethodNotAllowed(Refusal):
    """405: the path exists, the method does not.

    Args:
        message: One sentence for the caller.
        allow: The methods that do exist there (header ``Allow``).
    """

    status, code, title = 405, "MethodNotAllowed", "Method not allowed"

    def __init__(self, message: str, *, allow: Sequence[str]) -> None:
        super().__init__(message)
        self.allow = tuple(allow)


class Conflict(Refusal):
    """409: against the present state."""

    status, code, title = 409, "Conflict", "Conflicts with the current state"


class Gone(Refusal):
    """410: was here, past its time."""

    status, code, title = 410, "Gone", "No longer available"


class PreconditionFailed(Refusal):
    """412: ``If-Match`` names a version that is not the current one.

    Args:
        message: One sentence for the caller.
        current_version: The version that the instance has now.
    """

    status, code, title = 412, "PreconditionFailed", "The version does not match"

    def __init__(self, message: str, *, current_version: int) -> None:
        super().__init__(message, extra={"currentVersion": current_version})
        self.current_version = current_version


class PayloadTooLarge(Refusal):
    """413: the body is over the limit."""

    status, code, title = 413, "PayloadTooLarge", "The body is too large"


class UnsupportedMediaType(Refusal):
    """415: a content type or encoding that is not taken here."""

    status, code, title = 415, "UnsupportedMediaType", "Unsupported media type"


class Unprocessable(Refusal):
    """422: understood, and contradicts an earlier request."""

    status, code, title = 422, "Unprocessable", "Cannot be processed"


class RateLimited(Refusal):
    """429: over quota. ``retry_after`` is set."""

    status, code, title = 429, "RateLimit", "Too many requests"


class Unavailable(Refusal):
    """503: over capacity, or a dependency is away. ``retry_after`` is set."""

    status, code, title = 503, "Unavailable", "Temporarily unavailable"


class Transient(WaybillError):
    """Passes by itself: retried from a fresh read."""


class DatabaseUnavailable(Transient):
    """PostgreSQL refused, lost or timed out a connection."""


class Contention(Transient):
    """Deadlock, serialization failure, lock time-out, or a row that changed since it was read."""


class Unfamiliar(Transient):
    """A payload has members that this version does not know: it was accepted by another one."""


class BrokerUnavailable(Transient):
    """RabbitMQ refused, timed out, or returned the message as unroutable."""


class Permanent(WaybillError):
    """Recorded, never retried."""


class ConfigurationError(Permanent):
    """A setting is wrong. The message is one line that says what to do."""


def internal_problem(request_id: str | None) -> dict[str, Any]:
    """What a client sees of a fault of ours: no stack, no SQL, only the id to ask about."""
    return {
        "type": "urn:waybill:problem:Internal",
        "title": "Internal error",
        "status": 500,
        "error": "Internal",
        "message": "Something went wrong on our side. Quote the requestId when you report it.",
        "requestId": request_id,
    }
