"""Callbacks from one end of the outbox to the other: every end announced, truthfully; endpoints given up."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import Any
from uuid import UUID

import pytest
from celery import Celery
from kombu import Connection, Exchange, Queue

from models.deliveries.delivery_log import DeliveryLog
from models.deliveries.endpoint_secrets import new_secret
from models.deliveries.outbox import Delivery, Outbox
from models.identity.resealing import reseal
from models.identity.sealing import Sealer, Unsealable
from models.job import JobState
from tasks.courier import ENDPOINT_DISABLED
from tasks.names import DELIVERIES_QUEUE, EVENTS
from tasks.sweeper import Sweeper
from tests.kit.delivering import Endpoint, PatientDeliverer, deliveries, delivering, ids, make_due
from tests.kit.platform import Platform
from tests.kit.receiver import WebhookReceiver, answer, hold
from tests.kit.tickets import BROKEN
from tests.kit.waiting import wait_until

EVERY_END = ("job.succeeded", "job.failed", "job.cancelled", "job.expired", "job.dead")


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    with WebhookReceiver() as made:
        yield made


@pytest.fixture
def deliverer(platform: Platform, app: Celery) -> Iterator[PatientDeliverer]:
    with delivering(platform, app) as made:
        yield made


def one_row(platform: Platform) -> Any:
    (row,) = deliveries(platform)
    return row


# ---- every end is announced --------------------------------------------------------------


def succeed(platform: Platform, app: Celery) -> None:
    platform.made(platform.create())


def fail(platform: Platform, app: Celery) -> None:
    platform.ticket("1")
    taken = platform.ticket("the same")
    platform.made(taken)
    platform.rows("DELETE FROM deliveries")
    platform.made(platform.ticket("the same"))
    platform.rows('DELETE FROM "order-tickets"')


def die(platform: Platform, app: Celery) -> None:
    (job,) = platform.accept(platform.ticket("dies", note=BROKEN))
    for _ in range(3):
        platform.applier().apply([job])


def expire_when_applied(platform: Platform, app: Celery) -> None:
    (job,) = platform.accept(platform.create(expires_at=datetime.now(UTC) + timedelta(hours=1)))
    platform.rows("UPDATE jobs SET expires_at = now() - interval '1 second'")
    platform.applier().apply([job])


def expire_by_the_sweep(platform: Platform, app: Celery) -> None:
    platform.accept(platform.create(expires_at=datetime.now(UTC) + timedelta(hours=1)))
    platform.rows("UPDATE jobs SET expires_at = now() - interval '1 second'")
    sweeper = Sweeper(platform.database, platform.ledger, Outbox(), app)
    sweeper.sweep()
    assert sweeper._publisher.depth(DELIVERIES_QUEUE) == 2, "the callback, beside the event"
    sweeper._publisher.close()


def cancel(platform: Platform, app: Celery) -> None:
    (job,) = platform.accept(platform.create())
    with platform.database.transaction() as connection:
        platform.ledger.cancel(connection, job)


@pytest.mark.parametrize(
    ("end", "state"),
    [
        (succeed, "succeeded"),
        (fail, "failed"),
        (die, "dead"),
        (expire_when_applied, "expired"),
        (expire_by_the_sweep, "expired"),
        (cancel, "cancelled"),
    ],
)
def test_every_way_to_an_end_is_called_back(
    platform: Platform,
    app: Celery,
    deliverer: PatientDeliverer,
    receiver: WebhookReceiver,
    end: Callable[[Platform, Celery], None],
    state: str,
) -> None:
    endpoint = Endpoint(platform, receiver.url(), EVERY_END)
    end(platform, app)
    deliverer.deliver(ids(platform))
    (request,) = receiver.requests
    message = request.verify(endpoint.secret)
    assert (message["type"], message["data"]["state"], message["data"]["done"]) == (
        f"job.{state}",
        state,
        True,
    )
    assert ("error" in message["data"]) == (state in ("failed", "dead"))


# ---- bodies tell what was ----------------------------------------------------------------


def test_body_tells_the_outcome_as_it_was_though_the_job_went_on(
    platform: Platform, deliverer: PatientDeliverer, receiver: WebhookReceiver
) -> None:
    Endpoint(platform, receiver.url(), EVERY_END)
    (job,) = platform.accept(platform.ticket("revived", note=BROKEN))
    for _ in range(3):
        platform.applier().apply([job])
    died_at = platform.job(job).finished_at
    with platform.database.transaction() as connection:
        platform.ledger.redrive(connection, {job: None})
    platform.rows('UPDATE jobs SET payload = \'{"number": "revived"}\' WHERE id = :id', id=job)
    platform.applier().apply([job])
    assert platform.job(job).state is JobState.SUCCEEDED
    deliverer.deliver(ids(platform))
    told = (json.loads(request.body) for request in receiver.requests)
    dead, succeeded = sorted(told, key=lambda message: message["type"])
    assert (dead["type"], dead["data"]["state"], dead["data"]["attempt"]) == ("job.dead", "dead", 3)
    assert dead["data"]["error"]["status"] == 500
    assert "version" not in dead["data"]
    assert datetime.fromisoformat(dead["data"]["finishedAt"]) == died_at
    assert (succeeded["data"]["state"], succeeded["data"]["attempt"]) == ("succeeded", 1)
    assert succeeded["data"]["version"] == 1
    assert "error" not in succeeded["data"]
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == 2
    platform.rows('DELETE FROM "order-tickets"')


def test_callback_of_a_job_past_its_retention_is_given_up_and_holds_up_no_other(
    platform: Platform, deliverer: PatientDeliverer, receiver: WebhookReceiver
) -> None:
    Endpoint(platform, receiver.url(), EVERY_END)
    pruned, kept = platform.made(platform.create(), platform.create())
    platform.rows("DELETE FROM job_events WHERE job_id = :id", id=pruned.id)
    deliverer.deliver(ids(platform))
    states = {row.job_id: (row.state, row.error) for row in deliveries(platform)}
    assert states == {pruned.id: ("failed", "the job is past its retention"), kept.id: ("delivered", None)}


# ---- endpoints that are given up ---------------------------------------------------------


@pytest.fixture
def notices(broker_url: str) -> Iterator[Queue]:
    with Connection(broker_url) as connection:
        queue = Queue(
            "notices", Exchange(EVENTS, "topic"), routing_key="callback-endpoints.#", durable=False
        )(connection.default_channel)
        queue.declare()
        queue.purge()
        yield queue
        queue.delete()


def test_410_disables_and_says_so_by_an_event(
    platform: Platform, deliverer: PatientDeliverer, receiver: WebhookReceiver, notices: Queue
) -> None:
    receiver.will_always(answer(410))
    endpoint = Endpoint(platform, receiver.url(), EVERY_END)
    platform.made(platform.create(), platform.create())
    deliverer.deliver(ids(platform))
    deliverer.deliver(ids(platform, "notice"))
    message = wait_until(lambda: notices.get(no_ack=True), what="a notice")
    event = json.loads(message.body)
    assert message.delivery_info["routing_key"] == ENDPOINT_DISABLED
    assert (event["type"], event["subject"]) == ("callback-endpoint.disabled", str(endpoint.id))
    assert (event["data"]["disabled"], event["data"]["ownerId"]) == (True, str(platform.ada.id))
    assert "410" in event["data"]["disabledReason"]
    assert endpoint.secret not in str(message.body)
    assert notices.get(no_ack=True) is None, "once"
    assert [row.state for row in deliveries(platform, "notice")] == ["delivered"]


def test_endpoint_that_takes_nothing_for_days_is_disabled_and_one_success_forgives(
    platform: Platform, deliverer: PatientDeliverer, receiver: WebhookReceiver
) -> None:
    endpoint = Endpoint(platform, receiver.url(), EVERY_END)
    disabled = "SELECT disabled, disabled_reason, failing_since FROM callback_endpoints WHERE id = :id"
    for forgives in (True, False):
        receiver.will(answer(500), *([answer(204)] if forgives else []), answer(400))
        platform.made(platform.create())
        deliverer.deliver(ids(platform))
        platform.rows("UPDATE callback_endpoints SET failing_since = now() - interval '4 days'")
        if forgives:
            make_due(platform)
            deliverer.deliver(ids(platform))
        platform.made(platform.create())
        platform.rows("UPDATE deliveries SET created_at = now() - interval '4 days'")
        make_due(platform)
        deliverer.deliver(ids(platform)[-1:])
        ((is_disabled, reason, _),) = platform.rows(disabled, id=endpoint.id)
        assert is_disabled is not forgives
        assert forgives or "400" in reason
        if forgives:
            platform.rows("DELETE FROM deliveries")


def test_recovery_enables_and_sends_what_failed_and_what_was_missed(
    platform: Platform, deliverer: PatientDeliverer, receiver: WebhookReceiver
) -> None:
    receiver.will(answer(410))
    endpoint = Endpoint(platform, receiver.url(), ["job.succeeded"])
    (failed,) = platform.made(platform.create())
    deliverer.deliver(ids(platform))
    (missed,) = platform.made(platform.create())
    assert len(deliveries(platform)) == 1
    with platform.database.transaction() as connection:
        enabled = platform.container.endpoints.enable(connection, platform.ada.id, endpoint.id)
        assert DeliveryLog().recover(connection, enabled, None) == 2
    make_due(platform)
    deliverer.deliver(ids(platform))
    first, *sent_now = receiver.requests
    told = {json.loads(request.body)["data"]["id"]: request for request in sent_now}
    assert len(sent_now) == 2, "both at once, in no promised order"
    assert set(told) == {str(failed.id), str(missed.id)}
    again_sent = told[str(failed.id)]
    assert first.headers["webhook-id"] == again_sent.headers["webhook-id"]
    assert first.body == again_sent.body
    with platform.database.transaction() as connection:
        again = platform.container.endpoints.enable(connection, platform.ada.id, endpoint.id)
        assert DeliveryLog().recover(connection, again, None) == 0


def test_recovery_leaves_out_what_failed_before(platform: Platform, deliverer: PatientDeliverer) -> None:
    endpoint = Endpoint(platform, "http://127.0.0.1:9/hook", EVERY_END)
    platform.made(platform.create(), platform.create())
    platform.rows("UPDATE deliveries SET state = 'failed', announce_at = NULL WHERE kind = 'callback'")
    old, new = ids(platform)
    platform.rows("UPDATE deliveries SET created_at = now() - interval '2 days' WHERE id = :id", id=old)
    with platform.database.transaction() as connection:
        since = datetime.now(UTC) - timedelta(days=1)
        enabled = platform.container.endpoints.enable(connection, platform.ada.id, endpoint.id, since)
        assert DeliveryLog().recover(connection, enabled, since) == 1
    assert {row.id: row.state for row in deliveries(platform)} == {old: "failed", new: "pending"}


# ---- what waits for a thread -------------------------------------------------------------


def test_removed_endpoint_gets_nothing_of_what_waited_for_its_turn(
    platform: Platform, deliverer: PatientDeliverer, receiver: WebhookReceiver
) -> None:
    is_removed = Event()
    receiver.will(hold(is_removed))
    endpoint = Endpoint(platform, receiver.url(), EVERY_END)
    platform.made(*(platform.create() for _ in range(5)))
    deliverer.deliverer.deliver(ids(platform))
    receiver.wait_for(1)
    with platform.database.transaction() as connection:
        platform.container.endpoints.remove(connection, platform.ada.id, endpoint.id)
    is_removed.set()
    assert deliverer.sending.wait_idle(30)
    assert len(receiver.requests) == 1
    assert sorted(row.state for row in deliveries(platform)) == ["delivered", *["failed"] * 4]


def test_callback_that_was_claimed_before_is_sent_as_its_endpoint_is_now(
    platform: Platform, deliverer: PatientDeliverer, receiver: WebhookReceiver
) -> None:
    endpoint, new = Endpoint(platform, receiver.url(), EVERY_END), new_secret()
    platform.made(platform.create())
    platform.rows("UPDATE callback_endpoints SET disabled = true WHERE id = :id", id=endpoint.id)
    with platform.database.transaction() as connection:
        claimed = Outbox().claim(connection, ids(platform))
    with platform.database.transaction() as connection:
        platform.container.endpoints.enable(connection, platform.ada.id, endpoint.id)
        platform.container.endpoints.rotate(connection, platform.ada.id, endpoint.id, new)
    deliverer.sending.hand_over(claimed)
    assert deliverer.sending.wait_idle(30)
    assert one_row(platform).state == "delivered"
    assert receiver.requests[0].verify(new)


# ---- settled late ------------------------------------------------------------------------


def claimed_by(platform: Platform, outbox: Outbox) -> Delivery:
    """The one callback, as a worker has it that is about to send it."""
    with platform.database.transaction() as connection:
        (claimed,) = outbox.claim(connection, ids(platform))
        mine = outbox.extend(connection, claimed)
    assert mine is not None
    return mine


def settle_late(platform: Platform, outbox: Outbox, late: Delivery, end: str) -> None:
    with platform.database.transaction() as connection:
        if end == "delivered":
            outbox.delivered(connection, [late], status=204)
        elif end == "retrying":
            outbox.retry(connection, late, delay=timedelta(hours=1), error="late", status=None)
        else:
            assert not outbox.give_up(connection, late, error="late", status=None)


@pytest.mark.parametrize("end", ["delivered", "retrying", "failed"])
def test_what_becomes_of_an_earlier_send_settles_no_resend(
    platform: Platform, deliverer: PatientDeliverer, receiver: WebhookReceiver, end: str
) -> None:
    Endpoint(platform, receiver.url(), EVERY_END)
    platform.made(platform.create())
    outbox = Outbox()
    late = claimed_by(platform, outbox)
    with platform.database.transaction() as connection:
        DeliveryLog().resend(connection, platform.ada.id, late.id)
    settle_late(platform, outbox, late, end)
    row = one_row(platform)
    assert (row.state, row.attempts, row.error) == ("pending", 0, None)
    assert row.announce_at <= datetime.now(UTC)
    deliverer.deliver(ids(platform))
    assert len(receiver.requests) == 1


@pytest.mark.parametrize(("end", "state"), [("delivered", "delivered"), ("failed", "retrying")])
def test_of_a_claim_that_ran_out_only_a_success_counts(platform: Platform, end: str, state: str) -> None:
    Endpoint(platform, "http://127.0.0.1:9/hook", EVERY_END)
    platform.made(platform.create())
    outbox = Outbox()
    late = claimed_by(platform, outbox)
    make_due(platform)
    other = claimed_by(platform, outbox)
    with platform.database.transaction() as connection:
        outbox.retry(connection, other, delay=timedelta(hours=1), error="refused", status=503)
    settle_late(platform, outbox, late, end)
    row = one_row(platform)
    assert (row.state, row.announce_at is None) == (state, state == "delivered")


# ---- secrets at rest ---------------------------------------------------------------------


def kept_secret(platform: Platform, endpoint: UUID) -> str:
    ((kept,),) = platform.rows("SELECT secret FROM callback_endpoints WHERE id = :id", id=endpoint)
    return str(kept)


def test_secret_is_sealed_for_its_endpoint(platform: Platform, receiver: WebhookReceiver) -> None:
    one, other = Endpoint(platform, receiver.url()), Endpoint(platform, receiver.url())
    assert one.secret not in kept_secret(platform, one.id)
    assert "whsec_" not in kept_secret(platform, one.id)
    secrets = platform.container.endpoint_secrets
    assert secrets.open(one.id, kept_secret(platform, one.id)) == one.secret
    with pytest.raises(Unsealable):
        secrets.open(other.id, kept_secret(platform, one.id))


def test_plain_secret_of_before_signs_and_is_sealed_by_the_batch(
    platform: Platform, deliverer: PatientDeliverer, receiver: WebhookReceiver
) -> None:
    endpoint, plain = Endpoint(platform, receiver.url(), EVERY_END), new_secret()
    platform.rows(
        "UPDATE callback_endpoints SET secret = :plain, previous_secret = :plain WHERE id = :id",
        plain=plain,
        id=endpoint.id,
    )
    for _ in range(2):
        platform.made(platform.create())
        deliverer.deliver(ids(platform))
        assert receiver.requests[-1].verify(plain)
        resealed = reseal(platform.database, platform.container.sealer, platform.registry)
        assert {one.column: one.lost for one in resealed}["callback_endpoints.secret"] == 0
        assert not kept_secret(platform, endpoint.id).startswith("whsec_")


@pytest.fixture
def locked_out(platform: Platform, receiver: WebhookReceiver) -> Endpoint:
    """An endpoint whose secret was sealed under a key that is gone, and one callback to it."""
    endpoint = Endpoint(platform, receiver.url(), EVERY_END)
    foreign = Sealer({"lost": b"x" * 32}).seal(endpoint.secret, f"callback_endpoints.secret/{endpoint.id}")
    platform.rows("UPDATE callback_endpoints SET secret = :foreign", foreign=foreign)
    platform.made(platform.create())
    return endpoint


def test_rotation_mends_a_secret_that_cannot_be_opened(
    platform: Platform, deliverer: PatientDeliverer, receiver: WebhookReceiver, locked_out: Endpoint
) -> None:
    secret = new_secret()
    with platform.database.transaction() as connection:
        platform.container.endpoints.rotate(connection, platform.ada.id, locked_out.id, secret)
    deliverer.deliver(ids(platform))
    (request,) = receiver.requests
    assert request.verify(secret)
    assert one_row(platform).state == "delivered"


def test_callback_whose_secret_cannot_be_opened_for_days_is_given_up_and_can_be_recovered(
    platform: Platform, deliverer: PatientDeliverer, locked_out: Endpoint
) -> None:
    platform.rows("UPDATE callback_endpoints SET failing_since = now() - interval '7 days'")
    for days, state in ((5, "pending"), (7, "failed")):
        platform.rows(f"UPDATE deliveries SET created_at = now() - interval '{days} days'")  # noqa: S608
        make_due(platform)
        deliverer.deliver(ids(platform))
        assert one_row(platform).state == state
    assert platform.rows("SELECT disabled FROM callback_endpoints") == [(False,)], "it has no part in it"
    row = one_row(platform)
    assert (row.state, row.announce_at) == ("failed", None)
    assert "given up" in row.error
    with platform.database.transaction() as connection:
        enabled = platform.container.endpoints.enable(connection, platform.ada.id, locked_out.id)
        assert DeliveryLog().recover(connection, enabled, None) == 1


def test_secret_that_cannot_be_opened_burns_no_attempt(
    platform: Platform, deliverer: PatientDeliverer, receiver: WebhookReceiver, locked_out: Endpoint
) -> None:
    deliverer.deliver(ids(platform))
    row = one_row(platform)
    assert (row.state, row.attempts) == ("pending", 0)
    assert datetime.now(UTC) < row.announce_at < datetime.now(UTC) + timedelta(minutes=2)
    assert receiver.requests == []
