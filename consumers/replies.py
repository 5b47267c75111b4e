"""What the intake answers: replies to the sender, and dead letters with their reason. Pure; no sending."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from amqp.serialization import dumps

from consumers.envelope import Arrival
from consumers.publisher import Outgoing
from models.errors import PROBLEM_MEDIA_TYPE, Refusal, internal_problem
from models.ids import new_id
from models.intake import Receipt
from models.job import Operation, to_json
from tasks.names import DEAD_INTAKE

REASON = "x-waybill-reason"
ROUTING_KEY = "x-waybill-routing-key"
MAX_HEADER_BYTES = 64 * 1024
"""Headers beyond this are left out of a dead letter: with ours they might not fit a frame (128 KiB)."""

_MAX_REASON = 500
_PERSISTENT = 2
_CARRIED = ("content_type", "content_encoding", "message_id", "correlation_id", "reply_to", "type", "app_id")
_PLAIN = (str, bool, int, float, bytes, Decimal, datetime, type(None))


@dataclass(frozen=True, slots=True)
class Rejection:
    """A message that was not taken, and why.

    Attributes:
        problem: What the sender is told.
    """

    problem: Mapping[str, Any]

    @property
    def reason(self) -> str:
        """One short line: status, code and message."""
        problem = self.problem
        return f"{problem['status']} {problem['error']}: {problem['message']}"[:_MAX_REASON]


def refused(arrival: Arrival, refusal: Refusal) -> Rejection:
    """The rejection of a message that the sender got wrong."""
    return Rejection(refusal.problem(arrival.request_id or str(new_id())))


def failed(arrival: Arrival) -> Rejection:
    """The rejection of a message that our own code cannot cope with."""
    return Rejection(internal_problem(arrival.request_id or str(new_id())))


def accepted_reply(arrival: Arrival, receipt: Receipt) -> Outgoing | None:
    """``job.accepted``, where an answer was asked for.

    A repeated message whose job is final is told the outcome at once: the outbox told whoever asked
    first, and will not tell again.
    """
    job = receipt.job
    kind = f"job.{job.state}" if job.is_done else "job.accepted"
    document = to_json(job.document(with_result=job.operation is Operation.READ))
    return _reply(arrival, kind, document, "application/json", {"x-job-id": str(job.id)})


def rejected_reply(arrival: Arrival, rejection: Rejection) -> Outgoing | None:
    """``job.rejected``, where an answer was asked for."""
    return _reply(arrival, "job.rejected", to_json(rejection.problem), PROBLEM_MEDIA_TYPE, {})


def dead_letter(arrival: Arrival, rejection: Rejection) -> Outgoing:
    """The message as it came, with its reason, without its credentials."""
    properties = {name: arrival.properties[name] for name in _CARRIED if arrival.properties.get(name)}
    headers = {
        **_kept(arrival.headers),
        REASON: rejection.reason,
        ROUTING_KEY: arrival.routing_key,
    }
    properties |= {"application_headers": headers, "delivery_mode": _PERSISTENT}
    return Outgoing(
        exchange=DEAD_INTAKE, routing_key=arrival.routing_key, body=arrival.body, properties=properties
    )


def _reply(
    arrival: Arrival, kind: str, body: bytes, media_type: str, headers: Mapping[str, str]
) -> Outgoing | None:
    if arrival.reply_to is None:
        return None
    properties: dict[str, Any] = {
        "content_type": media_type,
        "content_encoding": "utf-8",
        "type": kind,
        "application_headers": dict(headers),
        "delivery_mode": _PERSISTENT,
    }
    if arrival.correlation_id is not None:
        properties["correlation_id"] = arrival.correlation_id
    return Outgoing(exchange="", routing_key=arrival.reply_to, body=body, properties=properties)


def _kept(headers: Mapping[Any, Any]) -> dict[str, Any]:
    """Headers that may be kept: no credentials, nothing that cannot be written again."""
    try:
        kept = {
            name: _plain(value)
            for name, value in headers.items()
            if isinstance(name, str) and name.lower() != "authorization"
        }
        return kept if len(dumps("F", (kept,))) <= MAX_HEADER_BYTES else {}
    except Exception:
        return {}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, _PLAIN) else str(value)
