"""The AMQP intake on a real RabbitMQ and PostgreSQL, fed by pika and the cloudevents package."""

import base64
import gzip
import json
import signal
import struct
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pika
import pytest
from cloudevents.core.bindings import amqp as amqp_binding
from cloudevents.core.bindings import rabbitmq as rabbitmq_binding
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from sqlalchemy import text

from consumers import link, main
from models.errors import ConfigurationError
from models.identity.principals import Role
from models.intake import Intake
from models.job import Submission
from models.service import ResourceService
from tasks import topology
from tests.kit.intake import IntakePlatform, intake_platform, is_bound
from tests.kit.upstream import Broker, Upstream
from tests.kit.waiting import wait_until

BIG = 256 * 1024


@pytest.fixture(scope="module")
def platform(
    broker: Broker, database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[IntakePlatform]:
    broker.add_user("stranger")
    broker.add_user("reader")
    data_dir: Path = tmp_path_factory.mktemp("data")
    with intake_platform(broker, database_url, data_dir, {"reader": "guest@example.com"}) as platform:
        with platform.container.database.transaction() as connection:
            platform.container.users.add(connection, "guest@example.com", "-", Role.GUEST)
        yield platform


@pytest.fixture
def upstream(platform: IntakePlatform) -> Upstream:
    return platform.upstream


def _entity(name: str = "crate", **members: Any) -> dict[str, Any]:
    return {"name": name, **members}


# ---- what is taken ---------------------------------------------------------------------


def test_json_message_becomes_a_job_and_is_answered(platform: IntakePlatform, upstream: Upstream) -> None:
    message_id = upstream.publish("entities.create", _entity(), correlation_id="c-1", headers={"x": 1})

    reply = upstream.reply("c-1")
    job = platform.job_of(message_id)
    assert (job.operation, job.resource, job.door, job.state) == ("create", "entities", "amqp", "queued")
    assert job.payload == {"name": "crate"}
    assert job.principal_id == platform.admin.id
    assert (job.reply_to, job.correlation_id) == (upstream.reply_queue, "c-1")
    assert reply.properties.type == "job.accepted"
    assert reply.headers == {"x-job-id": str(job.id)}
    assert reply.document["id"] == str(job.id)
    assert reply.document["state"] == "queued"


def test_accepted_job_is_announced_to_the_workers(platform: IntakePlatform, upstream: Upstream) -> None:
    message_id = upstream.publish("entities.create", _entity())

    job_id = str(platform.job_of(message_id).id)
    announced = upstream.take("waybill.jobs", lambda one: job_id in one.body.decode())
    assert announced.headers["task"] == "waybill.apply"
    assert b"crate" not in announced.body


def test_reply_is_correlated_by_message_id_where_nothing_else_is_given(upstream: Upstream) -> None:
    message_id = upstream.publish("entities.create", _entity())

    assert upstream.reply(message_id).properties.type == "job.accepted"


@pytest.mark.parametrize("binding", [amqp_binding, rabbitmq_binding], ids=["amqp", "rabbitmq"])
@pytest.mark.parametrize("mode", ["to_structured", "to_binary"])
def test_cloud_events_of_the_official_package_are_taken(
    platform: IntakePlatform, upstream: Upstream, binding: Any, mode: str
) -> None:
    event = CloudEvent(
        {
            "id": "not-the-key",
            "source": "/crm",
            "type": "entity.create",
            "specversion": "1.0",
            "datacontenttype": "application/json",
            "time": datetime.now(UTC),
        },
        _entity("from an event"),
    )
    packed = getattr(binding, mode)(event, JSONFormat())
    headers = packed.headers if binding is rabbitmq_binding else packed.application_properties
    body = packed.body if binding is rabbitmq_binding else packed.application_data
    content_type = packed.content_type if binding is rabbitmq_binding else packed.properties["content-type"]

    message_id = upstream.publish("entities.create", body, headers=headers, content_type=content_type)

    assert platform.job_of(message_id).payload == {"name": "from an event"}


def test_cloud_event_with_binary_data_is_unpacked(platform: IntakePlatform, upstream: Upstream) -> None:
    event = CloudEvent(
        {
            "id": "1",
            "source": "/crm",
            "type": "t",
            "specversion": "1.0",
            "datacontenttype": "application/json",
        },
        b'{"name":"base64"}',
    )
    packed = rabbitmq_binding.to_structured(event, JSONFormat())

    message_id = upstream.publish("entities.create", packed.body, content_type=packed.content_type)

    assert platform.job_of(message_id).payload == {"name": "base64"}


def test_create_patch_read_and_delete_in_one_batch_are_taken_in_order(
    platform: IntakePlatform, upstream: Upstream
) -> None:
    resource_id = str(uuid.uuid4())
    aimed = {"resource-id": resource_id}
    platform.stop()
    upstream.publish("entities.create", _entity("first", id=resource_id))
    upstream.publish("entities.patch", {"name": "second"}, headers={**aimed, "if-match": '"1"'})
    upstream.publish("entities.read", b"", headers=aimed, content_type=None)
    last = upstream.publish("entities.delete", b"", headers={**aimed, "if-match": 2}, content_type=None)
    platform.start()

    platform.job_of(last)
    jobs = platform.jobs("resource_id = :id", id=resource_id)
    assert [one.operation for one in jobs] == ["create", "patch", "read", "delete"]
    assert [one.if_match for one in jobs] == [None, 1, None, 2]


def test_a_thousand_messages_keep_the_order_of_the_queue(
    platform: IntakePlatform, upstream: Upstream
) -> None:
    mark = uuid.uuid4().hex
    for number in range(1000):
        upstream.publish("entities.create", _entity(f"{mark} {number}"), reply_to=None)

    jobs = platform.named(mark, 1000)
    assert [one.payload["name"] for one in jobs] == [f"{mark} {number}" for number in range(1000)]


def test_expiration_and_run_at_are_kept(platform: IntakePlatform, upstream: Upstream) -> None:
    run_at = datetime.now(UTC) + timedelta(minutes=5)
    message_id = upstream.publish(
        "entities.create", _entity(), expiration="600000", headers={"run-at": run_at.isoformat()}
    )

    job = platform.job_of(message_id)
    assert job.state == "scheduled"
    assert job.run_at == run_at
    assert timedelta(minutes=9) < job.expires_at - datetime.now(UTC) < timedelta(minutes=10)


def test_bearer_token_speaks_for_its_user(platform: IntakePlatform, broker: Broker) -> None:
    stranger = broker.connect("stranger")
    token = platform.container.tokens.issue(platform.admin)
    message_id = stranger.publish("entities.create", _entity(), headers={"authorization": f"Bearer {token}"})

    assert platform.job_of(message_id).principal_id == platform.admin.id
    stranger.close()


# ---- the same again --------------------------------------------------------------------


def test_same_message_twice_is_one_job(platform: IntakePlatform, upstream: Upstream) -> None:
    message_id = upstream.publish("entities.create", _entity("twice"))
    first = upstream.reply(message_id)
    upstream.publish("entities.create", _entity("twice"), message_id=message_id)

    second = upstream.reply(message_id)
    assert second.properties.type == "job.accepted"
    assert second.headers == first.headers
    assert len(platform.jobs("payload ->> 'name' = 'twice'")) == 1


def test_same_message_of_a_finished_job_is_answered_with_its_outcome(
    platform: IntakePlatform, upstream: Upstream
) -> None:
    message_id = upstream.publish("entities.create", _entity("soon cancelled"))
    job = platform.job_of(message_id)
    upstream.reply(message_id)
    with platform.container.database.transaction() as connection:
        platform.container.ledger.cancel(connection, job.id)
    upstream.publish("entities.create", _entity("soon cancelled"), message_id=message_id)

    reply = upstream.reply(message_id)
    assert reply.properties.type == "job.cancelled"
    assert reply.document["done"] is True


def test_same_message_id_with_another_request_is_refused(
    platform: IntakePlatform, upstream: Upstream
) -> None:
    message_id = upstream.publish("entities.create", _entity("one"))
    upstream.reply(message_id)
    upstream.publish("entities.create", _entity("other"), message_id=message_id)

    reply = upstream.reply(message_id)
    assert (reply.properties.type, reply.document["status"]) == ("job.rejected", 422)
    assert upstream.dead_letter(message_id).headers["x-waybill-reason"].startswith("422 Unprocessable")


# ---- what is not taken -----------------------------------------------------------------


@dataclass(frozen=True)
class Bad:
    """A message that must be refused with a status."""

    status: int
    routing_key: str = "entities.create"
    body: bytes = b'{"name":"ok"}'
    properties: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, Any] | None = None


_SOME_ID = "0190a000-0000-7000-8000-000000000000"
BAD = {
    "bad json": Bad(400, body=b'{"name":'),
    "not utf-8": Bad(400, body=b'{"name":"\xff"}'),
    "against the schema": Bad(400, body=b'{"name":""}'),
    "unknown resource": Bad(404, routing_key="nothings.create"),
    "unknown operation": Bad(404, routing_key="entities.explode"),
    "unknown instance": Bad(404, routing_key="entities.patch", headers={"resource-id": _SOME_ID}),
    "no resource id": Bad(400, routing_key="entities.patch"),
    "too large": Bad(413, body=b'{"name":"' + b"x" * BIG + b'"}'),
    "compressed": Bad(415, body=gzip.compress(b"{}"), properties={"content_encoding": "gzip"}),
    "kombu compressed": Bad(415, headers={"compression": "application/x-gzip"}),
    "wrong content type": Bad(415, properties={"content_type": "application/x-python-serialize"}),
    "no content type": Bad(415, properties={"content_type": None}),
    "no message id": Bad(400, properties={"message_id": None, "correlation_id": "no message id"}),
    "body on delete": Bad(400, routing_key="entities.delete", headers={"resource-id": _SOME_ID}),
    "bad if-match": Bad(
        400, routing_key="entities.patch", headers={"resource-id": _SOME_ID, "if-match": "x"}
    ),
    "half a cloud event": Bad(400, headers={"ce-id": "1"}),
    "bad token": Bad(401, headers={"authorization": "Bearer nonsense"}),
    "no user": Bad(401, properties={"user_id": None}),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_bad_message_is_refused_with_a_reason_and_the_next_is_taken(
    platform: IntakePlatform, upstream: Upstream, bad: Bad
) -> None:
    correlation_id = str(uuid.uuid4())
    properties = {"correlation_id": correlation_id, **bad.properties}
    message_id = upstream.publish(bad.routing_key, bad.body, headers=bad.headers, **properties)
    good = upstream.publish("entities.create", _entity("next"))

    reply = upstream.take(upstream.reply_queue, lambda one: one.properties.type == "job.rejected")
    letter = upstream.take(
        "waybill.dead", lambda one: one.properties.correlation_id == properties["correlation_id"]
    )
    assert reply.properties.correlation_id == properties["correlation_id"]
    assert reply.document["status"] == bad.status
    assert letter.headers["x-waybill-reason"].startswith(f"{bad.status} {reply.document['error']}: ")
    assert letter.body == bad.body
    assert letter.properties.message_id == (None if message_id == "None" else message_id)
    assert letter.routing_key == letter.headers["x-waybill-routing-key"] == bad.routing_key
    assert "authorization" not in letter.headers
    assert platform.job_of(good).state == "queued"


def test_unknown_broker_user_is_refused(upstream: Upstream, broker: Broker) -> None:
    stranger = broker.connect("stranger")
    message_id = stranger.publish("entities.create", _entity())

    assert stranger.reply(message_id).document["status"] == 401
    assert upstream.dead_letter(message_id).headers["x-waybill-reason"].startswith("401 Unauthorized")
    stranger.close()


def test_role_without_the_permission_is_refused(upstream: Upstream, broker: Broker) -> None:
    reader = broker.connect("reader")
    message_id = reader.publish("entities.create", _entity())

    assert reader.reply(message_id).document["status"] == 403
    reader.close()


@pytest.mark.parametrize("queue", ["waybill.jobs", "waybill.intake", "WAYBILL.dead", "w1@h.celery.pidbox"])
def test_reply_to_a_queue_of_ours_is_refused_and_nothing_is_sent_there(
    platform: IntakePlatform, upstream: Upstream, queue: str
) -> None:
    message_id = upstream.publish("entities.create", _entity("smuggled"), reply_to=queue)

    letter = upstream.dead_letter(message_id)
    assert letter.headers["x-waybill-reason"].startswith("400 Validation: reply_to")
    assert platform.jobs("payload ->> 'name' = 'smuggled'") == []


def test_reply_to_a_queue_that_is_gone_harms_nobody(platform: IntakePlatform, upstream: Upstream) -> None:
    gone = upstream.publish("entities.create", _entity(), reply_to="no-such-queue")
    refused = upstream.publish("entities.create", b"{", reply_to="no-such-queue")
    after = upstream.publish("entities.create", _entity())

    assert platform.job_of(gone).reply_to == "no-such-queue"
    upstream.dead_letter(refused)
    assert upstream.reply(after).properties.type == "job.accepted"


def test_message_that_expires_in_the_queue_is_refused_not_lost(
    platform: IntakePlatform, upstream: Upstream
) -> None:
    platform.stop()
    late = upstream.publish("entities.create", _entity("late"), expiration="1")
    wait_until(
        lambda: platform.broker.unsettled("waybill.intake.expired") == 1,
        timeout_seconds=60,
        what="expired by the broker",
    )
    platform.start()

    assert upstream.reply(late).document["status"] == 410
    letter = upstream.dead_letter(late)
    assert letter.headers["x-waybill-reason"].startswith("410 Gone")
    assert letter.headers["x-waybill-routing-key"] == "entities.create"


def _nested_table(depth: int) -> bytes:
    table = b""
    for _ in range(depth):
        table = b"\x01dF" + struct.pack(">I", len(table)) + table
    return table


DAMAGE: dict[str, tuple[dict[str, Any], bytes | None]] = {
    "correlation_id": ({"correlation_id": b"\xff\xfe"}, None),
    "message_id": ({"message_id": b"\xff"}, None),
    **{f"headers nested by {depth}": ({}, _nested_table(depth)) for depth in (150, 700, 970, 3000)},
    "a time beyond all calendars": ({}, b"\x04whenT" + b"\xff" * 8),
}


@pytest.mark.parametrize(("properties", "table"), DAMAGE.values(), ids=DAMAGE.keys())
def test_message_whose_properties_cannot_be_read_does_not_stop_the_intake(
    platform: IntakePlatform,
    upstream: Upstream,
    properties: dict[str, Any],
    table: bytes | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = json.dumps(_entity(uuid.uuid4().hex)).encode()
    with monkeypatch.context() as patched:
        patched.setattr(pika.data, "encode_short_string", _raw_short_string)
        if table is not None:
            patched.setattr(pika.data, "encode_table", lambda pieces, _: _raw_table(pieces, table))
        upstream.publish("entities.create", body, headers={"any": 1}, **properties)
    good = upstream.publish("entities.create", _entity())

    letter = upstream.take("waybill.dead", lambda one: one.body == body)
    assert letter.headers["x-waybill-reason"].startswith("400 Validation: These properties cannot be read")
    assert platform.job_of(good)


def _raw_short_string(pieces: list[bytes], value: bytes | str) -> int:
    raw = value if isinstance(value, bytes) else value.encode()
    pieces += [bytes([len(raw)]), raw]
    return 1 + len(raw)


def _raw_table(pieces: list[bytes], table: bytes) -> int:
    pieces += [struct.pack(">I", len(table)), table]
    return 4 + len(table)


def test_message_that_our_own_code_cannot_cope_with_is_isolated(
    platform: IntakePlatform, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    admit = ResourceService.admit

    def trip(self: ResourceService, operation: Any, body: bytes) -> Any:
        if b"poison" in body:
            raise RuntimeError("a bug of ours")
        return admit(self, operation, body)

    monkeypatch.setattr(ResourceService, "admit", trip)
    before = upstream.publish("entities.create", _entity("before"))
    poison = upstream.publish("entities.create", _entity("poison"))
    after = upstream.publish("entities.create", _entity("after"))

    assert upstream.dead_letter(poison).headers["x-waybill-reason"].startswith("500 Internal")
    assert platform.job_of(before)
    assert platform.job_of(after)


def test_what_is_settled_is_acknowledged(platform: IntakePlatform, upstream: Upstream) -> None:
    upstream.publish("entities.create", _entity())
    upstream.publish("entities.create", b"{")
    platform.job_of(upstream.publish("entities.create", _entity()))

    platform.stop()

    depth = upstream.channel.queue_declare("waybill.intake", passive=True).method.message_count
    platform.start()
    assert depth == 0


# ---- faults ----------------------------------------------------------------------------


def test_while_the_database_is_away_nothing_is_acknowledged_and_the_order_holds(
    platform: IntakePlatform, upstream: Upstream
) -> None:
    mark = uuid.uuid4().hex
    platform.to_database.cut()
    for number in range(300):
        upstream.publish("entities.create", _entity(f"{mark} {number}"), reply_to=None)
    wait_until(
        lambda: platform.broker.unsettled("waybill.intake") == 300,
        timeout_seconds=60,
        what="300 messages in the queue",
    )
    assert platform.named(mark, 0) == []

    platform.to_database.restore()

    jobs = platform.named(mark, 300)
    assert [one.payload["name"] for one in jobs] == [f"{mark} {number}" for number in range(300)]


def test_database_without_its_tables_costs_no_message(
    platform: IntakePlatform, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    engine = platform.container.database.engine
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE jobs RENAME TO jobs_elsewhere"))
    message_id = upstream.publish("entities.create", _entity("patient"))
    wait_until(lambda: "holding messages" in caplog.text, timeout_seconds=60, what="the hold in the log")
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE jobs_elsewhere RENAME TO jobs"))

    assert platform.job_of(message_id).payload == {"name": "patient"}


def test_stop_while_the_database_is_away_gives_the_messages_back_in_order(
    platform: IntakePlatform, upstream: Upstream
) -> None:
    mark = uuid.uuid4().hex
    platform.to_database.cut()
    for number in range(50):
        upstream.publish("entities.create", _entity(f"{mark} {number}"), reply_to=None)
    platform.stop()
    platform.to_database.restore()

    platform.start()

    jobs = platform.named(mark, 50)
    assert [one.payload["name"] for one in jobs] == [f"{mark} {number}" for number in range(50)]


def test_consumer_resumes_after_its_broker_connections_are_cut(
    platform: IntakePlatform, upstream: Upstream
) -> None:
    mark = uuid.uuid4().hex
    for number in range(600):
        upstream.publish("entities.create", _entity(f"{mark} {number}"), reply_to=None)
        if number % 200 == 100:
            platform.to_broker.drop()

    jobs = platform.named(mark, 600)
    assert [one.payload["name"] for one in jobs] == [f"{mark} {number}" for number in range(600)]


def test_broker_away_for_a_while_is_told_once_and_outlived(
    platform: IntakePlatform, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    platform.to_broker.cut()
    wait_until(lambda: "broker lost" in caplog.text, timeout_seconds=60, what="the outage in the log")
    message_id = upstream.publish("entities.create", _entity())
    platform.to_broker.restore()

    assert platform.job_of(message_id)
    assert caplog.text.count("broker lost") == 1


def test_dead_letter_queue_that_was_deleted_is_made_again(
    platform: IntakePlatform, upstream: Upstream
) -> None:
    upstream.channel.queue_delete("waybill.dead")
    upstream.channel.exchange_delete("waybill.dead")
    message_id = upstream.publish("entities.create", b"{")

    assert upstream.reply(message_id).document["status"] == 400
    assert upstream.dead_letter(message_id)


def test_intake_queue_that_was_deleted_is_made_again(
    platform: IntakePlatform, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "SILENCE_SECONDS", 2)  # the broker may forget us: a link may be made just now
    upstream.channel.queue_delete("waybill.intake")
    wait_until(
        lambda: is_bound(platform.broker, "waybill.intake"), timeout_seconds=60, what="the intake queue again"
    )

    message_id = upstream.publish("entities.create", _entity())
    assert platform.job_of(message_id)


def test_intake_queue_that_was_deleted_while_a_batch_is_at_work_is_made_again(
    platform: IntakePlatform, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work, may_end, accept = threading.Event(), threading.Event(), Intake.accept

    def slowly(self: Intake, batch: Sequence[Submission]) -> Any:
        at_work.set()
        assert may_end.wait(30)
        return accept(self, batch)

    monkeypatch.setattr(Intake, "accept", slowly)
    monkeypatch.setattr(link, "SILENCE_SECONDS", 2)  # the broker may forget us: a link may be made just now
    before = upstream.publish("entities.create", _entity())
    assert at_work.wait(60)
    upstream.channel.queue_delete("waybill.intake")
    time.sleep(3)  # heartbeats go on, and the broker's word of it comes with them
    may_end.set()
    platform.job_of(before)
    wait_until(
        lambda: is_bound(platform.broker, "waybill.intake"), timeout_seconds=60, what="the intake queue"
    )
    platform.job_of(upstream.publish("entities.create", _entity()))


def test_intake_that_the_broker_forgot_consumes_anew(
    platform: IntakePlatform, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.channel.queue_delete("waybill.intake")
    arguments = topology.INTAKE_QUEUE.queue_arguments
    upstream.channel.queue_declare("waybill.intake", durable=True, arguments=arguments)
    upstream.channel.queue_bind("waybill.intake", "waybill.intake", "#")
    message_ids = [upstream.publish("entities.create", _entity()) for _ in range(3)]
    monkeypatch.setattr(link, "SILENCE_SECONDS", 0.5)
    assert [platform.job_of(one) for one in message_ids]


def test_consumer_process_stops_on_sigterm_and_logs_json(platform: IntakePlatform) -> None:
    with platform.spawn() as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=60)

    assert first["message"] == "consuming upstream messages"
    assert status == 0


def test_consumer_without_a_broker_says_what_to_do_in_one_line(platform: IntakePlatform) -> None:
    settings = platform.settings.model_copy(update={"broker_url": ""})
    with pytest.raises(ConfigurationError, match="WAYBILL_BROKER_URL"):
        main.consume(settings, threading.Event())


def test_intake_queue_that_somebody_else_declared_is_told_once_and_awaited(
    platform: IntakePlatform, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    platform.stop()
    upstream.channel.queue_delete("waybill.dead")
    upstream.channel.queue_declare("waybill.dead", durable=True)
    platform.start()
    wait_until(
        lambda: "broker not usable" in caplog.text, timeout_seconds=60, what="the complaint in the log"
    )
    told = [record for record in caplog.records if "broker not usable" in record.message]
    reasons = [getattr(record, "reason", "") for record in told]
    message_id = upstream.publish("entities.create", _entity())
    upstream.channel.queue_delete("waybill.dead")

    assert platform.job_of(message_id)
    assert sum("waybill.dead exists on the broker with other" in reason for reason in reasons) == 1


def test_flood_of_large_bodies_is_refused_in_bounded_memory(
    platform: IntakePlatform, upstream: Upstream
) -> None:
    body = b'"' + base64.b64encode(b"x" * 6_000_000) + b'"'
    for _ in range(12):
        last = upstream.publish("entities.create", body)
    good = upstream.publish("entities.create", _entity())

    assert upstream.reply(last).document["status"] == 413
    assert upstream.dead_letter(last).body == body
    assert platform.job_of(good)
