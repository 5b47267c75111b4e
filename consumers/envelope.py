"""The envelope: what an upstream message says beside its data. Pure: no broker, no database, no clock."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any
from uuid import UUID

from consumers import cloud_events
from consumers.frames import UNREADABLE
from consumers.reply_queues import ANY_QUEUE, ReplyQueues, is_our_queue
from models.errors import Detail, Gone, Invalid, NotFound, PayloadTooLarge, UnsupportedMediaType
from models.ids import parse_id
from models.job import Operation

MAX_BODY_BYTES = 256 * 1024
_MAX_INTEGER = 2**63 - 1

_ROUTING_KEY = re.compile(r"([a-z][a-z0-9_-]{0,62})\.([a-z]+)")
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A message as it came off the wire, nothing decoded.

    Attributes:
        properties: AMQP properties by their names in the standard, with ``_``.
        headers: The application headers among them.
        is_redelivered: The broker has handed it to a consumer before.
        has_expired: It outlived its ``expiration`` in the queue, or when it was given back there.
        reply_queues: Those that may be answered to.
    """

    routing_key: str
    body: bytes
    properties: Mapping[str, Any]
    headers: Mapping[Any, Any]
    arrived_at: datetime
    delivery_tag: int = 0
    is_redelivered: bool = False
    has_expired: bool = False
    reply_queues: ReplyQueues = ANY_QUEUE

    @property
    def request_id(self) -> str | None:
        """The message id, where it has the shape of a request id."""
        message_id = self.properties.get("message_id")
        is_usable = isinstance(message_id, str) and _REQUEST_ID.fullmatch(message_id)
        return message_id if is_usable else None

    @property
    def may_have_been_taken(self) -> bool:
        """Whether it may have been taken before: whoever took it was lost before he acknowledged it.

        It may have expired since, and that takes the broker's mark of a redelivery from it.
        """
        return self.is_redelivered or self.has_expired

    @property
    def expiration(self) -> object:
        """The property, which the broker moves when the message expires."""
        if not self.has_expired:
            return self.properties.get("expiration")
        deaths = self.headers.get("x-death")
        latest = deaths[0] if isinstance(deaths, list) and deaths else None
        return latest.get("original-expiration") if isinstance(latest, Mapping) else None

    @property
    def reply_to(self) -> str | None:
        """The queue to answer to; None where there is none, or where it is not for us to publish to."""
        reply_to = _text(self.properties.get("reply_to"))
        return reply_to if reply_to and self.may_answer_to(reply_to) else None

    def may_answer_to(self, queue: str) -> bool:
        """Whether ``queue`` may be answered to."""
        return self.reply_queues.admit(queue, _text(self.properties.get("user_id")))

    @property
    def correlation_id(self) -> str | None:
        """What an answer carries to be recognised by."""
        return _text(self.properties.get("correlation_id")) or _text(self.properties.get("message_id"))

    def header(self, name: str) -> Any:
        """A header by its name in lower case, whichever case it came in; None where it is missing."""
        return _lowered(self.headers).get(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A message that says clearly what it wants.

    Attributes:
        data: JSON text; empty where there is none.
        parent_id: The parent's instance, where the resource has a parent.
        if_match: The version that the sender demands.
        lifetime_ms: The message's ``expiration``.
    """

    message_id: str
    resource: str
    operation: Operation
    resource_id: UUID | None
    data: bytes
    parent_id: UUID | None = None
    if_match: int | None = None
    run_at: datetime | None = None
    expires_at: datetime | None = None
    lifetime_ms: int | None = None
    reply_to: str | None = None
    correlation_id: str | None = None
    traceparent: str | None = field(default=None, compare=False)

    def fingerprint(self, key: bytes) -> bytes:
        """Keyed digest of what is asked: the same for the same request, however it was packed."""
        asked = (
            f"{self.resource}.{self.operation}",
            self.resource_id,
            self.if_match,
            self.run_at.isoformat() if self.run_at else None,
            self.lifetime_ms,
            *([] if self.parent_id is None else [self.parent_id]),
        )
        digest = blake2b(key=key, digest_size=32)
        digest.update(repr([str(part) for part in asked]).encode("utf-8", "backslashreplace"))
        digest.update(self.data)
        return digest.digest()


def check_delivery(arrival: Arrival) -> None:
    """Refuse what came too late or damaged, before asking who sent it.

    Raises:
        Gone: It outlived its ``expiration``.
        Invalid: Some of its properties are not readable.
    """
    if arrival.has_expired:
        raise Gone("The message expired before it could be taken")
    unreadable = arrival.header(UNREADABLE)
    if unreadable is not None:
        raise Invalid(f"These properties cannot be read: {(_text(unreadable) or '')[:100]}")


def read(arrival: Arrival) -> Envelope:
    """Read a message's envelope and unpack its data.

    Raises:
        Refusal: Whatever is wrong, with the status that HTTP would give it.
    """
    headers = _lowered(arrival.headers)
    if len(arrival.body) > MAX_BODY_BYTES:
        raise PayloadTooLarge(f"A body may have {MAX_BODY_BYTES} bytes; this has {len(arrival.body)}")
    properties = arrival.properties
    resource, operation = _routing(arrival.routing_key)
    lifetime_ms = _lifetime(arrival.expiration)
    return Envelope(
        message_id=_message_id(properties.get("message_id")),
        resource=resource,
        operation=operation,
        resource_id=_resource_id(headers.get("resource-id"), operation),
        parent_id=_id("parent-id", headers.get("parent-id")),
        data=_data(arrival.body, properties, headers),
        if_match=_if_match(headers.get("if-match"), operation),
        run_at=_time(headers.get("run-at")),
        expires_at=_later(arrival.arrived_at, lifetime_ms),
        lifetime_ms=lifetime_ms,
        reply_to=_reply_to(arrival),
        correlation_id=_correlation_id(properties),
        traceparent=_traceparent(headers.get("traceparent")),
    )


# ---- the parts, in the order they are read ---------------------------------------------


def _routing(routing_key: str) -> tuple[str, Operation]:
    match = _ROUTING_KEY.fullmatch(routing_key)
    if match is None:
        raise NotFound("The routing key must be {resource}.{operation}")
    resource, operation = match.groups()
    try:
        return resource, Operation(operation)
    except ValueError as error:
        known = ", ".join(Operation)
        raise NotFound(f"The routing key must end in one of {known}") from error


def _lifetime(expiration: object) -> int | None:
    if expiration is None or expiration == "":
        return None
    if not isinstance(expiration, str) or not re.fullmatch(r"[0-9]{1,12}", expiration):
        raise _invalid("expiration", "must be milliseconds as text")
    return int(expiration)


def _later(moment: datetime, milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else moment + timedelta(milliseconds=milliseconds)


def _message_id(value: object) -> str:
    if value is None or value == "":
        raise _invalid("message_id", "is required: it tells a repeated message from a new one")
    if not isinstance(value, str) or len(value) > 255 or not value.isprintable():
        raise _invalid("message_id", "must be at most 255 printable characters")
    return value


def _resource_id(value: object, operation: Operation) -> UUID | None:
    if value is None:
        if operation is Operation.CREATE:
            return None
        raise _invalid("resource-id", f"is required to {operation}")
    return _id("resource-id", value)


def _id(name: str, value: object) -> UUID | None:
    if value is None:
        return None
    identifier = parse_id(value) if isinstance(value, str) else None
    if identifier is None:
        raise _invalid(name, "must be a UUID as text")
    return identifier


def _data(body: bytes, properties: Mapping[str, Any], headers: Mapping[str, Any]) -> bytes:
    """The JSON text inside. Whatever is encoded in some other way is refused before it is decoded."""
    encoding = properties.get("content_encoding")
    if str(encoding or "utf-8").lower() not in ("utf-8", "utf8", "identity"):
        raise UnsupportedMediaType("The body must not be encoded: leave content_encoding out")
    if headers.get("compression"):
        raise UnsupportedMediaType("The body must not be compressed")
    media_type = properties.get("content_type") or None
    if isinstance(media_type, str) and _essence(media_type) == cloud_events.STRUCTURED:
        return cloud_events.structured_data(body)
    attributes = cloud_events.binary_attributes(headers)
    if not cloud_events.is_json(media_type) and (media_type is not None or (body and not attributes)):
        raise UnsupportedMediaType(f"The content type must be application/json or {cloud_events.STRUCTURED}")
    if attributes:
        cloud_events.check_attributes(attributes)
    return body


def _if_match(value: object, operation: Operation) -> int | None:
    if value is None:
        return None
    if operation is Operation.CREATE:
        raise _invalid("if-match", "means nothing to a create")
    if isinstance(value, str):
        match = re.fullmatch(r'"?([0-9]{1,19})"?', value)
        value = int(match[1]) if match and value.startswith('"') == value.endswith('"') else None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_INTEGER:
        raise _invalid("if-match", "must be a version: an integer, or one in quotes")
    return value


def _time(value: object) -> datetime | None:
    """RFC 3339 text, or AMQP's own timestamp."""
    if value is None:
        return None
    try:
        if isinstance(value, datetime):
            return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        if isinstance(value, str) and _RFC_3339.fullmatch(value):
            return datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise _invalid("run-at", "must be a time as RFC 3339 has it")


def _reply_to(arrival: Arrival) -> str | None:
    value = arrival.properties.get("reply_to")
    if value is None or value == "":
        return None
    text = _text(value)
    if text is None:
        raise _invalid("reply_to", "must be the name of a queue")
    if is_our_queue(text):
        raise _invalid("reply_to", "names a queue of the platform")
    if not arrival.may_answer_to(text):
        raise _invalid("reply_to", "names a queue that is not answered to here")
    return text


def _correlation_id(properties: Mapping[str, Any]) -> str | None:
    value = properties.get("correlation_id")
    if value is None or value == "":
        return _text(properties.get("message_id"))
    text = _text(value)
    if text is None:
        raise _invalid("correlation_id", "must be text without control characters")
    return text


def _traceparent(value: object) -> str | None:
    """W3C trace context; a malformed one is ignored, as that standard says."""
    return value if isinstance(value, str) and _TRACEPARENT.fullmatch(value) else None


def _invalid(name: str, reason: str) -> Invalid:
    return Invalid(f"{name} {reason}", details=[Detail(name, reason)])


def _essence(media_type: str) -> str:
    return media_type.partition(";")[0].strip().lower()


def _text(value: object) -> str | None:
    """``value`` if it is text that can be stored and sent: no control characters, no lone surrogates."""
    is_plain = isinstance(value, str) and not re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", value)
    return value if is_plain and isinstance(value, str) else None


def _lowered(headers: Mapping[Any, Any]) -> dict[str, Any]:
    return {name.lower(): value for name, value in headers.items() if isinstance(name, str)}
