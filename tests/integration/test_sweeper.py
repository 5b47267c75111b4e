"""The sweep against a real RabbitMQ and PostgreSQL: feeds what is missing, wakes, expires, refills."""

import json
from collections.abc import Iterator
from uuid import UUID

import pytest
from celery import Celery
from kombu import Connection

from models import metrics
from models.deliveries.outbox import Outbox
from models.errors import BrokerUnavailable
from models.job import Priority
from tasks import sweeper as sweeper_module
from tasks.app import make_app
from tasks.names import APPLY, DELIVER, DELIVERIES_QUEUE, JOB_QUEUES
from tasks.publisher import Publisher
from tasks.sweeper import Sweeper
from tests.kit.platform import Platform
from tests.kit.waiting import wait_until

JOBS = JOB_QUEUES[Priority.NORMAL]


@pytest.fixture
def sweeper(platform: Platform, app: Celery) -> Iterator[Sweeper]:
    made = Sweeper(platform.database, platform.ledger, Outbox(), app)
    yield made
    made._publisher.close()


def taken(broker_url: str, queue: str) -> list[tuple[str, list[UUID]]]:
    """Take every message out of a queue: task, and the ids in it."""
    found = []
    with Connection(broker_url) as connection:
        while (message := connection.default_channel.basic_get(queue, no_ack=True)) is not None:
            arguments = json.loads(message.body)[0]
            found.append((message.headers["task"], [UUID(one) for one in arguments[0]]))
    return found


def is_due(platform: Platform) -> None:
    platform.rows("UPDATE jobs SET announce_at = now() WHERE announce_at IS NOT NULL")


def test_due_jobs_are_announced_by_priority_in_their_order(
    platform: Platform, sweeper: Sweeper, broker_url: str
) -> None:
    ids = platform.accept(*(platform.create() for _ in range(3)), platform.create(priority=Priority.BULK))
    assert sweeper.sweep() == 0
    is_due(platform)
    assert sweeper.sweep() == 4
    assert taken(broker_url, JOBS) == [(APPLY, ids[:3])]
    assert taken(broker_url, JOB_QUEUES[Priority.BULK]) == [(APPLY, ids[3:])]
    assert taken(broker_url, JOB_QUEUES[Priority.HIGH]) == []


def test_plate_is_filled_and_not_heaped(
    platform: Platform, sweeper: Sweeper, broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper_module, "PLATE", 3)
    monkeypatch.setattr(sweeper_module, "CHUNK", 2)
    ids = platform.accept(*(platform.create() for _ in range(20)))
    is_due(platform)
    assert sweeper.sweep() == 6
    wait_until(lambda: sweeper._publisher.depth(JOBS) == 3)
    assert sweeper.sweep() == 0
    first = taken(broker_url, JOBS)
    assert [one for _, chunk in first for one in chunk] == ids[:6]
    assert sweeper.sweep() == 6
    assert [one for _, chunk in taken(broker_url, JOBS) for one in chunk] == ids[6:12]


def test_wiped_queue_is_refilled_from_the_ledger(
    platform: Platform, sweeper: Sweeper, broker_url: str
) -> None:
    ids = platform.accept(platform.create(), platform.create())
    is_due(platform)
    sweeper.sweep()
    with Connection(broker_url) as connection:
        connection.default_channel.queue_delete(JOBS)
    with pytest.raises(BrokerUnavailable):  # the queue itself is gone: found out, and made anew
        sweeper.sweep()
    is_due(platform)
    assert sweeper.sweep() == 2
    assert taken(broker_url, JOBS) == [(APPLY, ids)]


def test_sweepers_share_the_work(platform: Platform, sweeper: Sweeper, app: Celery, broker_url: str) -> None:
    ids = platform.accept(*(platform.create() for _ in range(4)))
    is_due(platform)
    with platform.database.transaction() as connection:
        assert platform.ledger.due(connection, Priority.NORMAL, 2) == ids[:2]
        assert sweeper.sweep() == 2
    assert taken(broker_url, JOBS) == [(APPLY, ids[2:])]


def test_overdue_jobs_end_and_scheduled_ones_wake(
    platform: Platform, sweeper: Sweeper, broker_url: str
) -> None:
    (overdue,), (scheduled,) = platform.accept(platform.create()), platform.accept(platform.create())
    platform.rows("UPDATE jobs SET expires_at = now() WHERE id = :id", id=overdue)
    platform.rows(
        "UPDATE jobs SET state = 'scheduled', announce_at = now(), run_at = now() WHERE id = :id",
        id=scheduled,
    )
    counted = metrics.JOBS_FINISHED["expired"]._value.get()
    sweeper.sweep()
    assert platform.states([overdue, scheduled]) == ["expired", "queued"]
    assert metrics.JOBS_FINISHED["expired"]._value.get() == counted + 1
    assert taken(broker_url, JOBS) == [(APPLY, [scheduled])]


def kinds_announced(platform: Platform, broker_url: str) -> list[str]:
    """What kinds of deliveries wait in the queue; it is empty afterwards."""
    kinds = {row.id: row.kind for row in platform.rows("SELECT id, kind FROM deliveries")}
    messages = taken(broker_url, DELIVERIES_QUEUE)
    assert {task for task, _ in messages} <= {DELIVER}
    return [kinds[one] for _, ids in messages for one in ids]


def test_deliveries_are_announced_once_and_replies_only_when_nobody_sent_them(
    platform: Platform, sweeper: Sweeper, broker_url: str
) -> None:
    platform.made(platform.create(reply_to="answers"))
    sweeper.sweep()
    assert kinds_announced(platform, broker_url) == ["events"]
    platform.rows("UPDATE deliveries SET announce_at = now() - interval '3 seconds'")
    sweeper.sweep()
    assert kinds_announced(platform, broker_url) == ["reply"]
    sweeper.sweep()
    assert kinds_announced(platform, broker_url) == []


def test_without_a_broker_time_still_passes_for_jobs(platform: Platform) -> None:
    nowhere = make_app(platform.settings.model_copy(update={"broker_url": "amqp://127.0.0.1:1"}))
    (overdue,) = platform.accept(platform.create())
    platform.rows("UPDATE jobs SET expires_at = now() WHERE id = :id", id=overdue)
    with pytest.raises(BrokerUnavailable):
        Sweeper(platform.database, platform.ledger, Outbox(), nowhere).sweep()
    assert platform.job(overdue).state == "expired"


def test_it_sweeps_in_the_background_until_stopped(platform: Platform, sweeper: Sweeper, app: Celery) -> None:
    platform.accept(platform.create())
    is_due(platform)
    watcher = Publisher(app)
    sweeper.start()
    wait_until(lambda: watcher.depth(JOBS) == 1)
    sweeper.stop()
    watcher.close()
    assert not sweeper._thread.is_alive()
