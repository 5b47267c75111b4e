"""Delivering, with a real receiver, a real RabbitMQ and a real PostgreSQL."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from amqp import Message
from celery import Celery
from kombu import Connection, Exchange, Queue

from models.breaker import THRESHOLD
from models.deliveries.endpoint_secrets import new_secret
from models.deliveries.outbox import Outbox
from models.job import Job
from tasks.app import make_app
from tasks.deliverer import BROKER_REST, Deliverer
from tasks.names import EVENTS
from tasks.publisher import NotConfirmed, Publisher
from tests.kit.delivering import (
    Endpoint,
    PatientDeliverer,
    deliveries,
    delivering,
    ids,
    make_due,
    make_sending,
)
from tests.kit.platform import Platform
from tests.kit.receiver import WebhookReceiver, answer, close
from tests.kit.waiting import wait_until


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    with WebhookReceiver() as made:
        yield made


@pytest.fixture
def deliverer(platform: Platform, app: Celery) -> Iterator[PatientDeliverer]:
    with delivering(platform, app) as made:
        yield made


def called_back(platform: Platform, endpoint: Endpoint, jobs: int = 1) -> list[Job]:
    return platform.made(*(platform.create(callback_endpoint_id=endpoint.id) for _ in range(jobs)))


# ---- webhooks ------------------------------------------------------------------------


def test_outcome_arrives_signed_with_the_job_and_without_its_payload(
    platform: Platform, deliverer: PatientDeliverer, receiver: WebhookReceiver
) -> None:
    endpoint = Endpoint(platform, receiver.url())
    (job,) = called_back(platform, endpoint)
    deliverer.deliver(ids(platform))
    (request,) = receiver.requests
    message = request.verify(endpoint.secret)
    assert message["type"] == "job.succeeded"
    assert message["data"]["id"] == str(job.id)
    assert (message["data"]["state"], message["data"]["version"], message["data"]["done"]) == (
        "succeeded",
        1,
        True,
    )
    assert not {"payload", "result"} & set(message["data"])
    (row,) = deliveries(platform)
    assert (row.state, row.attempts, row.response_status, row.announce_at) == ("delivered", 1, 204, None)


def test_retries_repeat_body_and_id_to_the_byte(
    platform: Platform, deliverer: PatientDeliverer, receiver: WebhookReceiver
) -> None:
    receiver.will(answer(500), close())
    endpoint = Endpoint(platform, receiver.url())
    called_back(platform, endpoint)
    for attempts in (1, 2):
        deliverer.deliver(ids(platform))
        (row,) = deliveries(platform)
        assert (row.state, row.attempts) == ("retrying", attempts)
        assert row.announce_at > datetime.now(UTC)
        make_due(platform)
    deliverer.deliver(ids(platform))
    assert deliveries(platform)[0].state == "delivered"
    assert len(receiver.requests) == 3
    assert len({request.body for request in receiver.requests}) == 1
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == 1
    assert all(request.verify(endpoint.secret) for request in receiver.requests)


def test_delivered_and_undue_ones_are_not_sent_again(
    platform: Platform, deliverer: PatientDeliverer, receiver: WebhookReceiver
) -> None:
    receiver.will(answer(204), answer(503))
    called_back(platform, Endpoint(platform, receiver.url()), jobs=2)
    for _ in range(3):
        deliverer.deliver(ids(platform))
    assert [row.state for row in deliveries(platform)] == ["delivered", "retrying"]
    assert len(receiver.requests) == 2


def test_two_workers_with_the_same_announcement_send_once(
    platform: Platform, deliverer: PatientDeliverer, receiver: WebhookReceiver
) -> None:
    called_back(platform, Endpoint(platform, receiver.url()), jobs=5)
    announced = ids(platform)
    with ThreadPoolExecutor(3) as workers:
        list(workers.map(lambda _: deliverer.deliver(announced), range(3)))
    assert len(receiver.requests) == 5


def test_410_disables_the_endpoint_and_what_waits_for_it_is_given_up(
    platform: Platform, deliverer: PatientDeliverer, receiver: WebhookReceiver
) -> None:
    receiver.will(answer(410))
    endpoint = Endpoint(platform, receiver.url())
    called_back(platform, endpoint)
    deliverer.deliver(ids(platform))
    platform.rows("UPDATE deliveries SET state = 'pending', announce_at = now() WHERE kind = 'callback'")
    deliverer.deliver(ids(platform))
    assert len(receiver.requests) == 1
    assert deliveries(platform)[0].state == "failed"
    assert platform.rows("SELECT disabled FROM callback_endpoints WHERE id = :id", id=endpoint.id) == [
        (True,)
    ]


def test_both_secrets_sign_while_the_old_one_is_rotated_out(
    platform: Platform, deliverer: PatientDeliverer, receiver: WebhookReceiver
) -> None:
    endpoint, new = Endpoint(platform, receiver.url()), new_secret()
    with platform.database.transaction() as connection:
        platform.container.endpoints.rotate(connection, platform.ada.id, endpoint.id, new)
    called_back(platform, endpoint)
    deliverer.deliver(ids(platform))
    assert receiver.requests[0].verify(new) == receiver.requests[0].verify(endpoint.secret)


def test_breaker_parks_the_rest_without_burning_attempts_and_one_probe_closes_it(
    platform: Platform, deliverer: PatientDeliverer, receiver: WebhookReceiver
) -> None:
    receiver.will_always(answer(503))
    called_back(platform, Endpoint(platform, receiver.url()), jobs=THRESHOLD + 3)
    deliverer.deliver(ids(platform))
    assert len(receiver.requests) == THRESHOLD
    rows = deliveries(platform)
    assert [row.attempts for row in rows] == [1] * THRESHOLD + [0] * 3
    ((probe_at,),) = platform.rows("SELECT probe_at FROM breakers")
    assert all(row.announce_at >= probe_at for row in rows[THRESHOLD:])
    make_due(platform)
    deliverer.deliver(ids(platform))
    assert len(receiver.requests) == THRESHOLD, "while it is open nothing is sent"
    platform.rows("UPDATE breakers SET probe_at = now()")
    make_due(platform)
    receiver.will_always(answer(204))
    deliverer.deliver(ids(platform))
    assert platform.rows("SELECT count(*) FROM breakers") == [(0,)]
    assert {row.state for row in deliveries(platform)} == {"delivered"}
    assert len(receiver.requests) == 2 * THRESHOLD + 3


def test_failing_host_delays_no_other(
    platform: Platform, deliverer: PatientDeliverer, receiver: WebhookReceiver
) -> None:
    with WebhookReceiver() as failing:
        failing.will_always(answer(500))
        called_back(platform, Endpoint(platform, failing.url()), jobs=THRESHOLD + 1)
        called_back(platform, Endpoint(platform, receiver.url()), jobs=2)
        deliverer.deliver(ids(platform))
    assert len(receiver.requests) == 2


def test_parking_leaves_alone_what_somebody_else_has_sent_meanwhile(
    platform: Platform, deliverer: PatientDeliverer, receiver: WebhookReceiver
) -> None:
    called_back(platform, Endpoint(platform, receiver.url()), jobs=3)
    outbox = Outbox()
    with platform.database.transaction() as connection:
        claimed = outbox.claim(connection, ids(platform))
    with platform.database.transaction() as connection:
        outbox.delivered(connection, [claimed[1]])
    platform.rows(
        "UPDATE deliveries SET announce_at = announce_at + interval '1 minute' WHERE id = :id",
        id=claimed[2].id,
    )
    until = datetime.now(UTC) + timedelta(seconds=1)
    with platform.database.transaction() as connection:
        outbox.park(connection, claimed, until)
    rows = {row.id: row.announce_at for row in deliveries(platform)}
    assert rows[claimed[0].id] == until
    assert rows[claimed[1].id] is None
    assert rows[claimed[2].id] == claimed[2].claimed_until + timedelta(minutes=1)


# ---- AMQP ----------------------------------------------------------------------------


class Listener:
    """A queue of a client's own. One with ``room`` refuses what is beyond."""

    def __init__(
        self, connection: Connection, name: str, key: str | None = None, *, room: int | None = None
    ) -> None:
        self._queue = Queue(
            name,
            Exchange(EVENTS, "topic") if key else Exchange(""),
            routing_key=key or name,
            auto_delete=False,
            durable=False,
            queue_arguments=None if room is None else {"x-max-length": room, "x-overflow": "reject-publish"},
        )(connection.default_channel)
        self._queue.declare()
        self._queue.purge()

    def message(self) -> Any:
        return wait_until(lambda: self._queue.get(no_ack=True), what="a message")

    def is_empty(self) -> bool:
        return self._queue.get(no_ack=True) is None

    def end(self) -> None:
        self._queue.delete()


@pytest.fixture
def client(broker_url: str) -> Iterator[Connection]:
    with Connection(broker_url) as connection:
        yield connection


def test_reply_reaches_the_callers_queue_with_its_correlation(
    platform: Platform, deliverer: PatientDeliverer, client: Connection
) -> None:
    listener = Listener(client, "answers-to-ada")
    (job,) = platform.made(platform.create(reply_to="answers-to-ada", correlation_id="order-7"))
    deliverer.deliver(ids(platform, "reply"))
    message = listener.message()
    listener.end()
    assert message.properties["correlation_id"] == "order-7"
    assert message.properties["type"] == "job.succeeded"
    assert message.headers["x-job-id"] == str(job.id)
    assert json.loads(message.body)["id"] == str(job.id)
    assert deliveries(platform, "reply")[0].state == "delivered"


def test_reply_to_a_queue_that_is_gone_is_given_up(platform: Platform, deliverer: PatientDeliverer) -> None:
    platform.made(platform.create(reply_to="nobody-listens"))
    deliverer.deliver(ids(platform, "reply"))
    (row,) = deliveries(platform, "reply")
    assert (row.state, row.announce_at) == ("failed", None)
    assert "does not exist" in row.error


def test_events_reach_who_listens_as_cloud_events_in_order(
    platform: Platform, deliverer: PatientDeliverer, client: Connection
) -> None:
    listener = Listener(client, "ears", "entities.create.*")
    jobs = platform.made(*(platform.create() for _ in range(5)))
    deliverer.deliver(ids(platform, "events"))
    messages = [listener.message() for _ in jobs]
    assert listener.is_empty()
    listener.end()
    events = [json.loads(message.body) for message in messages]
    assert [event["subject"] for event in events] == [str(job.id) for job in jobs]
    first = events[0]
    assert (first["specversion"], first["type"]) == ("1.0", "job.succeeded")
    assert first["data"]["sequence"] == jobs[0].sequence
    assert len({event["id"] for event in events}) == 5
    assert messages[0].content_type == "application/cloudevents+json"
    assert messages[0].delivery_info["routing_key"] == "entities.create.succeeded"


def test_what_the_broker_did_not_take_waits_for_it_seconds_not_the_whole_claim(platform: Platform) -> None:
    platform.made(platform.create(reply_to="answers-to-ada"), platform.create())
    unreachable = make_app(platform.settings.model_copy(update={"broker_url": "amqp://127.0.0.1:1//"}))
    waiting = ids(platform, "events") + ids(platform, "reply")
    Deliverer(platform.database, Outbox(), make_sending(platform), Publisher(unreachable)).deliver(waiting)
    rows = deliveries(platform, "events") + deliveries(platform, "reply")
    assert [(row.state, row.attempts) for row in rows] == [("pending", 0), ("pending", 0)]
    soon = datetime.now(UTC) + BROKER_REST + timedelta(seconds=1)
    assert all(datetime.now(UTC) < row.announce_at < soon for row in rows)


def test_unheard_events_cost_one_message_for_each_key(
    platform: Platform, deliverer: PatientDeliverer, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform.made(*(platform.create() for _ in range(20)), platform.ticket(str(datetime.now(UTC))))
    publish, keys = deliverer.deliverer._publisher.message, []

    def count(*arguments: Any, **named: Any) -> bool:
        keys.append(named["routing_key"])
        return publish(*arguments, **named)

    monkeypatch.setattr(deliverer.deliverer._publisher, "message", count)
    deliverer.deliver(ids(platform, "events"))
    assert keys == ["entities.create.succeeded", "tickets.create.succeeded"]
    assert deliveries(platform, "events")[0].state == "delivered"


def test_reply_queue_that_is_full_holds_up_nobody_else_and_gets_its_reply_later(
    platform: Platform, deliverer: PatientDeliverer, client: Connection
) -> None:
    full, ears = Listener(client, "full-answers", room=1), Listener(client, "ears", "entities.create.*")
    other = Listener(client, "answers-to-ada")
    client.default_channel.basic_publish(Message("in the way"), routing_key="full-answers")
    first, later = platform.made(
        platform.create(reply_to="full-answers"), platform.create(reply_to="answers-to-ada")
    )
    deliverer.deliver(ids(platform, "reply") + ids(platform, "events"))
    assert other.message().headers["x-job-id"] == str(later.id)
    assert [json.loads(ears.message().body)["subject"] for _ in range(2)] == [str(first.id), str(later.id)]
    row, delivered = deliveries(platform, "reply")
    assert (row.state, row.attempts, row.error) == ("retrying", 1, "the reply queue is full")
    assert datetime.now(UTC) < row.announce_at < datetime.now(UTC) + timedelta(seconds=10)
    assert delivered.state == "delivered"
    for _ in range(5):
        make_due(platform)
        deliverer.deliver(ids(platform, "reply"))
    row, _ = deliveries(platform, "reply")
    assert (row.state, row.attempts) == ("retrying", 6)
    assert row.announce_at > datetime.now(UTC) + timedelta(minutes=30), "ever more rarely"
    assert full.message().body == "in the way"
    make_due(platform)
    deliverer.deliver(ids(platform, "reply"))
    assert full.message().headers["x-job-id"] == str(first.id)
    assert {row.state for row in deliveries(platform, "reply")} == {"delivered"}
    for listener in (full, ears, other):
        listener.end()


def test_reply_is_given_up_when_its_queue_has_been_full_for_days(
    platform: Platform, deliverer: PatientDeliverer, client: Connection
) -> None:
    full = Listener(client, "full-answers", room=1)
    client.default_channel.basic_publish(Message("in the way"), routing_key="full-answers")
    platform.made(platform.create(reply_to="full-answers"))
    platform.rows("UPDATE deliveries SET created_at = now() - interval '3 days'")
    deliverer.deliver(ids(platform, "reply"))
    (row,) = deliveries(platform, "reply")
    assert (row.state, row.attempts) == ("retrying", 1), "the first refusal is not the last"
    make_due(platform)
    deliverer.deliver(ids(platform, "reply"))
    full.end()
    (row,) = deliveries(platform, "reply")
    assert (row.state, row.announce_at) == ("failed", None)
    assert "full" in row.error


def silence(
    deliverer: PatientDeliverer, monkeypatch: pytest.MonkeyPatch, is_silent: Callable[[str], bool]
) -> list[str]:
    """Have no message of some keys confirmed, and none of them arrive; the keys that were tried."""
    publish, tried = deliverer.deliverer._publisher.message, []

    def message(*arguments: Any, **named: Any) -> bool:
        tried.append(named["routing_key"])
        if is_silent(named["routing_key"]):
            raise NotConfirmed("no word of it")
        return publish(*arguments, **named)

    monkeypatch.setattr(deliverer.deliverer._publisher, "message", message)
    return tried


def test_reply_queues_that_do_not_confirm_hold_up_nobody_else(
    platform: Platform, deliverer: PatientDeliverer, client: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = ("one-without-majority", "another-without-majority")
    tried = silence(deliverer, monkeypatch, lambda key: key in silent)
    ears, other = Listener(client, "ears", "entities.create.*"), Listener(client, "answers-to-ada")
    platform.made(*(platform.create(reply_to=silent[n % 2]) for n in range(6)))
    platform.made(platform.create(reply_to="answers-to-ada"))
    deliverer.deliver(ids(platform, "reply") + ids(platform, "events"))
    assert [tried.count(one) for one in silent] == [1, 1], "one tells enough"
    assert [ears.message() for _ in range(7)], "events have a patience of their own"
    *troubled, well = deliveries(platform, "reply")
    assert {(row.state, row.attempts, row.error) for row in troubled} == {
        ("retrying", 1, "the broker did not confirm it")
    }
    assert (well.state, well.attempts) == ("pending", 0)
    make_due(platform)
    deliverer.deliver(ids(platform, "reply"))
    assert other.message(), "those that are well go first"
    ears.end()
    other.end()


def sizes(platform: Platform) -> dict[str, list[int]]:
    """How many events each delivery of some tells of, by state."""
    found: dict[str, list[int]] = {}
    for row in deliveries(platform, "events"):
        found.setdefault(row.state, []).append(len(row.sequences))
    return found


def test_events_that_do_not_get_through_are_tried_once_for_each_key(
    platform: Platform, deliverer: PatientDeliverer, client: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = silence(deliverer, monkeypatch, lambda key: key == "entities.create.succeeded")
    ears = Listener(client, "ears", "tickets.#")
    platform.made(*(platform.create() for _ in range(5)), platform.ticket(str(datetime.now(UTC))))
    deliverer.deliver(ids(platform, "events"))
    assert ears.message()
    assert tried == ["entities.create.succeeded", "tickets.create.succeeded"]
    assert sizes(platform) == {"retrying": [5], "delivered": [1]}
    monkeypatch.undo()
    late = Listener(client, "late", "entities.#")
    make_due(platform)
    deliverer.deliver(ids(platform, "events"))
    assert len({json.loads(late.message().body)["subject"] for _ in range(5)}) == 5
    assert ears.is_empty()
    ears.end()
    late.end()


def test_events_of_many_keys_get_through_beside_a_queue_that_does_not_confirm(
    platform: Platform, deliverer: PatientDeliverer, client: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = ("entities.create.succeeded", "entities.patch.succeeded")
    tried = silence(deliverer, monkeypatch, lambda key: key in silent)
    ears = Listener(client, "ears", "#")
    entity = platform.made(platform.create())[0].resource_id
    platform.made(platform.patch(entity, name="new"))
    platform.made(platform.ticket(str(datetime.now(UTC))))
    deliverer.deliver(ids(platform, "events"))
    assert sorted(tried) == sorted(silent), "no more is waited for at once"
    assert sizes(platform) == {"retrying": [1, 1], "pending": [1]}
    platform.rows("UPDATE deliveries SET announce_at = now() WHERE state = 'pending'")
    deliverer.deliver([row.id for row in deliveries(platform, "events") if row.state == "pending"])
    assert ears.message().delivery_info["routing_key"] == "tickets.create.succeeded"
    assert sizes(platform) == {"retrying": [1, 1], "delivered": [1]}
    ears.end()


def test_each_key_of_a_delivery_gets_its_turn_beside_queues_that_do_not_confirm(
    platform: Platform, deliverer: PatientDeliverer, client: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    silence(deliverer, monkeypatch, lambda key: not key.startswith("tickets"))
    ears = Listener(client, "ears", "tickets.#")
    entity = platform.made(platform.create(), platform.create())[0].resource_id
    platform.rows("DELETE FROM deliveries WHERE kind = 'events'")
    platform.made(
        platform.create(), platform.patch(entity, name="new"), platform.ticket(str(datetime.now(UTC)))
    )
    for _ in range(20):
        make_due(platform)
        deliverer.deliver(ids(platform, "events"))
        if "delivered" in sizes(platform):
            break
    assert ears.message()
    assert sum(sizes(platform)["delivered"]) == 1
    ears.end()


def test_full_queue_and_one_that_does_not_confirm_are_not_taken_for_each_other(
    platform: Platform, deliverer: PatientDeliverer, client: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    silence(deliverer, monkeypatch, lambda key: key.startswith("tickets"))
    full, other = Listener(client, "deaf", "entities.#", room=1), Listener(client, "alert", "entities.#")
    client.default_channel.basic_publish(Message("in the way"), routing_key="deaf")
    platform.made(*(platform.create() for _ in range(3)), platform.ticket(str(datetime.now(UTC))))
    for _ in range(3):
        deliverer.deliver(ids(platform, "events"))
        make_due(platform)
    rows = deliveries(platform, "events")
    assert sorted((len(row.sequences), row.attempts, row.error) for row in rows) == [
        (1, 3, "the broker did not confirm it"),
        (3, 3, "a listener's queue is full"),
    ]
    assert len([other.message() for _ in range(5)]) == 5, "once each, then the first at each attempt"
    assert other.is_empty()
    full.end()
    other.end()


def test_what_was_never_tried_is_told_though_another_queue_is_full(
    platform: Platform, deliverer: PatientDeliverer, client: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, other = Listener(client, "deaf", "entities.#", room=1), Listener(client, "alert", "entities.#")
    client.default_channel.basic_publish(Message("in the way"), routing_key="deaf")
    jobs = platform.made(*(platform.create() for _ in range(4)))
    with monkeypatch.context() as patched:
        silence(deliverer, patched, lambda _: True)  # one confirmation is lost
        deliverer.deliver(ids(platform, "events"))
    make_due(platform)
    deliverer.deliver(ids(platform, "events"))
    assert [json.loads(other.message().body)["subject"] for _ in jobs] == [str(job.id) for job in jobs]
    full.end()
    other.end()


def test_listener_whose_queue_is_full_misses_nothing_and_gets_nothing_twice(
    platform: Platform, deliverer: PatientDeliverer, client: Connection
) -> None:
    full, other = (
        Listener(client, "small-ears", "entities.#", room=2),
        Listener(client, "others", "tickets.#"),
    )
    jobs = platform.made(*(platform.create() for _ in range(5)), platform.ticket(str(datetime.now(UTC))))
    (ticket,) = (job for job in jobs if job.resource == "tickets")
    platform.made(platform.create())
    deliverer.deliver(ids(platform, "events"))
    assert json.loads(other.message().body)["subject"] == str(ticket.id)
    assert sizes(platform) == {"retrying": [3, 1], "delivered": [3]}
    told = []
    for _ in range(3):
        told += [json.loads(full.message().body)["subject"] for _ in range(2)]
        make_due(platform)
        deliverer.deliver(ids(platform, "events"))
    assert full.is_empty()
    assert other.is_empty()
    assert len(told) == len(set(told)) == 6
    assert {row.state for row in deliveries(platform, "events")} == {"delivered"}
    assert sum(sizes(platform)["delivered"]) == 7, "each event is in one delivery"
    full.end()
    other.end()


def test_listener_whose_queue_is_full_keeps_nothing_from_another_of_the_same_events(
    platform: Platform, deliverer: PatientDeliverer, client: Connection
) -> None:
    full, other = Listener(client, "deaf", "entities.#", room=1), Listener(client, "alert", "entities.#")
    jobs = platform.made(*(platform.create() for _ in range(4)))
    deliverer.deliver(ids(platform, "events"))
    told = [json.loads(other.message().body)["subject"] for _ in jobs]
    assert told == [str(job.id) for job in jobs]
    assert sizes(platform) == {"retrying": [3], "delivered": [1]}
    make_due(platform)
    deliverer.deliver(ids(platform, "events"))
    assert other.message()
    assert other.is_empty(), "one refusal of a key tells enough, once all have been told"
    full.end()
    other.end()


def test_events_tell_each_end_of_a_redriven_job_as_it_was(
    platform: Platform, deliverer: PatientDeliverer, client: Connection
) -> None:
    listener = Listener(client, "obituaries", "#")
    (job,) = platform.accept(platform.create())
    platform.rows("UPDATE jobs SET crashes = 99 WHERE id = :id", id=job)
    platform.applier().apply([job], are_suspect=True)
    deliverer.deliver(ids(platform, "events"))
    with platform.database.transaction() as connection:
        platform.ledger.redrive(connection, {job: None})
    platform.applier().apply([job])
    deliverer.deliver(ids(platform, "events"))
    told = [listener.message() for _ in range(3)]
    events = [json.loads(message.body) for message in told]
    assert listener.is_empty()
    listener.end()
    assert [event["type"] for event in events] == ["job.dead", "job.succeeded", "job.resolved"]
    assert told[-1].delivery_info["routing_key"] == "entities.create.resolved"
    assert (events[-1]["resolution"], events[-1]["data"]["generation"]) == ("redriven", 2)
    assert events[-1]["data"]["state"] == "succeeded"
    assert len({event["id"] for event in events}) == 3


def test_discarded_letter_is_told_as_resolved_and_its_death_not_again(
    platform: Platform, deliverer: Deliverer, client: Connection
) -> None:
    listener = Listener(client, "discards", "#")
    (job,) = platform.accept(platform.create())
    platform.rows("UPDATE jobs SET crashes = 99 WHERE id = :id", id=job)
    platform.applier().apply([job], are_suspect=True)
    with platform.database.transaction() as connection:
        assert platform.ledger.discard(connection, [job]) == [job]
    deliverer.deliver(ids(platform, "events"))
    events = [json.loads(listener.message().body) for _ in range(2)]
    assert listener.is_empty()
    listener.end()
    assert [event["type"] for event in events] == ["job.dead", "job.resolved"]
    assert events[1]["resolution"] == "discarded"
