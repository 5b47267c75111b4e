"""Upstream systems on the running platform: pika and CloudEvents in; replies, events and dead letters out."""

import json
import re
import uuid
from collections.abc import Iterator

import pika
import pytest
from click.testing import CliRunner
from cloudevents.core.bindings import rabbitmq as binding
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from deploy.doctor_command import doctor
from tests.e2e.conftest import Platform
from tests.kit.upstream import ManagementApi, Upstream
from tests.kit.waiting import wait_until


@pytest.fixture
def upstream(full: Platform) -> Iterator[Upstream]:
    text = (full.up.directory.run / "waybill.env").read_text()
    found = re.search(r"^WAYBILL_BROKER_URL='(.*)'$", text, re.MULTILINE)
    assert found
    upstream = Upstream(pika.BlockingConnection(pika.URLParameters(found[1])), "waybill")
    yield upstream
    upstream.close()


def test_message_is_answered_twice_and_told_to_whoever_listens(full: Platform, upstream: Upstream) -> None:
    events = upstream.channel.queue_declare("", exclusive=True).method.queue
    upstream.channel.queue_bind(events, "waybill.events", "entities.create.#")
    name = uuid.uuid4().hex

    message_id = upstream.publish("entities.create", {"name": name}, correlation_id="order-7")

    accepted, succeeded = upstream.reply("order-7"), upstream.reply("order-7")
    assert (accepted.properties.type, succeeded.properties.type) == ("job.accepted", "job.succeeded")
    job_id = succeeded.headers["x-job-id"]
    assert accepted.headers["x-job-id"] == succeeded.document["id"] == job_id
    assert full.client.job(job_id)["result"]["name"] == name
    event = upstream.take(events, lambda one: job_id in one.body.decode())
    assert event.routing_key == "entities.create.succeeded"
    assert event.properties.content_type == "application/cloudevents+json"
    assert (event.document["specversion"], event.document["data"]["id"]) == ("1.0", job_id)
    upstream.publish("entities.create", {"name": name}, correlation_id="order-7", message_id=message_id)
    assert upstream.reply("order-7").headers["x-job-id"] == job_id


@pytest.mark.parametrize("mode", ["to_structured", "to_binary"])
def test_cloud_event_is_applied(full: Platform, upstream: Upstream, mode: str) -> None:
    attributes = {"id": "1", "source": "/crm", "type": "entity.create", "specversion": "1.0"}
    event = CloudEvent({**attributes, "datacontenttype": "application/json"}, {"name": f"event {mode}"})
    packed = getattr(binding, mode)(event, JSONFormat())

    message_id = upstream.publish(
        "entities.create", packed.body, headers=packed.headers, content_type=packed.content_type
    )

    upstream.reply(message_id)
    final = upstream.reply(message_id)
    assert final.properties.type == "job.succeeded"
    assert full.client.job(final.document["id"])["result"]["name"] == f"event {mode}"


def test_business_refusal_is_answered_with_its_problem(upstream: Upstream) -> None:
    headers = {"resource-id": str(uuid.uuid4())}
    first = upstream.publish("entities.create", {"name": "one"}, headers=headers)

    second = upstream.publish("entities.create", {"name": "another of that id"}, headers=headers)

    final = upstream.take(upstream.reply_queue, lambda one: one.properties.type == "job.failed")
    assert final.properties.correlation_id == second != first
    assert final.document["error"]["status"] == 409


def test_junk_is_answered_and_laid_aside_and_the_next_message_is_taken(upstream: Upstream) -> None:
    message_id = upstream.publish("entities.create", b"\xff{ junk")
    after = upstream.publish("entities.create", {"name": "after junk"})

    rejected = upstream.reply(message_id)
    assert rejected.properties.type == "job.rejected"
    assert rejected.document["status"] == 400
    laid_aside = upstream.dead_letter(message_id)
    assert laid_aside.body == b"\xff{ junk"
    assert laid_aside.headers["x-waybill-reason"]
    assert json.loads(upstream.reply(after).body)["state"] == "queued"


def test_queues_are_bounded_and_doctor_is_content_with_one_user_for_everything(full: Platform) -> None:
    text = (full.up.directory.run / "waybill.env").read_text()
    found = re.search(r"^WAYBILL_BROKER_API_URL='(.*)'$", text, re.MULTILINE)
    assert found
    call = ManagementApi(found[1]).call
    for queue, limit in (("waybill.intake", "waybill-intake"), ("waybill.dead", "waybill-dead")):
        wait_until(
            lambda path=f"/queues/waybill/{queue}", limit=limit: call("GET", path).get("policy") == limit,
            what=f"the limit of {queue} in force",
        )

    told = CliRunner(env={"WAYBILL_DATA_DIR": str(full.up.directory.path)}).invoke(doctor)
    assert "ok    broker-users one for everything" in told.output, told.output
