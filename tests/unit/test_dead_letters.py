"""What a dead letter keeps of its message, and what a reply says."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import orjson
import pytest
from amqp.basic_message import Message

from consumers import replies
from consumers.envelope import Arrival
from models.errors import Invalid, Refusal, Unauthorized
from models.ids import new_id
from models.intake import Receipt
from models.job import Job, JobState, Operation, Priority

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def arrival(headers: dict[Any, Any] | None = None, **properties: Any) -> Arrival:
    return Arrival(
        routing_key="entities.create",
        body=b"\xff",
        properties=properties,
        headers=headers or {},
        arrived_at=NOW,
    )


def letter(message: Arrival, refusal: Refusal | None = None) -> dict[str, Any]:
    refusal = refusal or Invalid("no")
    return dict(replies.dead_letter(message, replies.refused(message, refusal)).properties)


def receipt(state: JobState, *, operation: Operation = Operation.READ, is_replay: bool = False) -> Receipt:
    job = Job(
        id=new_id(),
        state=state,
        operation=operation,
        resource="entities",
        resource_id=new_id(),
        principal_id=new_id(),
        attempt=1,
        priority=Priority.NORMAL,
        created_at=NOW,
        run_at=None,
        finished_at=None,
        expires_at=None,
        version=1,
        result='{"name":"a"}',
        error=None,
        request_id="r",
        sequence=7,
    )
    return Receipt(job, is_replay)


def test_reason_is_status_code_and_message() -> None:
    assert letter(arrival(), Unauthorized("who?"))["application_headers"]["x-waybill-reason"] == (
        "401 Unauthorized: who?"
    )


def test_letter_keeps_the_message_and_loses_its_credentials() -> None:
    message = arrival({"Authorization": "Bearer x", "a": 1}, message_id="m", correlation_id="c", user_id="u")

    outgoing = replies.dead_letter(message, replies.refused(message, Invalid("no")))

    assert (outgoing.exchange, outgoing.routing_key, outgoing.body) == (
        "waybill.dead",
        "entities.create",
        b"\xff",
    )
    headers = outgoing.properties["application_headers"]
    assert set(headers) == {"a", "x-waybill-reason", "x-waybill-routing-key"}
    assert (outgoing.properties["message_id"], outgoing.properties["correlation_id"]) == ("m", "c")
    assert "user_id" not in outgoing.properties


@pytest.mark.parametrize(
    "headers",
    [
        {b"\xff": 1},
        {"x": object()},
        {"x": {1: [None, b"\xff", Decimal("1.5"), NOW, {"y": True}]}},
        {"x": 2**80},
        {"x": "y" * 100_000},
        {"x" * 300: 1},
    ],
)
def test_letter_can_always_be_written(headers: dict[Any, Any]) -> None:
    properties = letter(arrival(headers))

    assert len(Message(b"", **properties)._serialize_properties()) < 128 * 1024
    assert properties["application_headers"]["x-waybill-reason"] == "400 Validation: no"


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        (JobState.QUEUED, "job.accepted"),
        (JobState.SCHEDULED, "job.accepted"),
        (JobState.RETRYING, "job.accepted"),
        (JobState.SUCCEEDED, "job.succeeded"),
        (JobState.DEAD, "job.dead"),
    ],
)
def test_accepted_reply_tells_the_outcome_where_there_is_one(state: JobState, kind: str) -> None:
    told = receipt(state)
    reply = replies.accepted_reply(arrival(reply_to="q", message_id="m"), told)

    assert reply is not None
    assert (reply.exchange, reply.routing_key) == ("", "q")
    assert reply.properties["type"] == kind
    assert reply.properties["correlation_id"] == "m"
    assert reply.properties["application_headers"] == {"x-job-id": str(told.job.id)}
    assert orjson.loads(reply.body)["result"] == {"name": "a"}


def test_only_a_read_is_answered_with_its_result() -> None:
    reply = replies.accepted_reply(arrival(reply_to="q"), receipt(JobState.QUEUED, operation=Operation.PATCH))

    assert reply is not None
    assert "result" not in orjson.loads(reply.body)


@pytest.mark.parametrize("reply_to", [None, "", "waybill.jobs", "\x00", 7])
def test_nobody_is_answered_where_there_is_nobody_to_answer(reply_to: Any) -> None:
    message = arrival(reply_to=reply_to)

    assert replies.accepted_reply(message, receipt(JobState.QUEUED)) is None
    assert replies.rejected_reply(message, replies.failed(message)) is None
