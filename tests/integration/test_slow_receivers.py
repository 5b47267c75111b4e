"""A receiver that takes connections and never answers delays nobody: a real worker, broker and database."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from models.deliveries.outbox import Outbox
from models.settings import Settings
from tasks.announcer import Announcer
from tasks.app import make_app
from tasks.sweeper import Sweeper
from tasks.worker import ThreadedWorker
from tests.kit.delivering import Endpoint, ids
from tests.kit.platform import Platform
from tests.kit.receiver import Exchange, WebhookReceiver, answer, hang
from tests.kit.waiting import wait_until

WAITING = 1000
HEALTHY = 60
P95_SECONDS = 2.0


@pytest.fixture
def settings(platform: Platform, broker_url: str) -> Settings:
    return platform.settings.model_copy(update={"broker_url": broker_url, "callback_allow_private": True})


@contextmanager
def working(platform: Platform, settings: Settings) -> Iterator[Announcer]:
    """A worker with two threads for tasks, and its sweeper."""
    app = make_app(settings)
    announcer = Announcer(app)
    sweeper = Sweeper(platform.database, platform.ledger, Outbox(), app)
    worker = ThreadedWorker(app, concurrency=2, hostname="slow-receivers@test")
    worker.start()
    sweeper.start()
    try:
        yield announcer
    finally:
        sweeper.stop()
        worker.stop(20)
        announcer.close()


def test_black_holed_receiver_with_a_thousand_waiting_delays_no_healthy_one(
    platform: Platform, settings: Settings
) -> None:
    arrivals: list[float] = []

    def note(exchange: Exchange) -> None:
        arrivals.append(time.monotonic())
        answer(204)(exchange)

    with WebhookReceiver() as hole, WebhookReceiver() as healthy, working(platform, settings) as announcer:
        hole.will_always(hang())
        healthy.will_always(note)
        dead, alive = Endpoint(platform, hole.url()), Endpoint(platform, healthy.url())
        platform.made(*(platform.create(callback_endpoint_id=dead.id) for _ in range(WAITING)))
        announcer.deliveries(ids(platform))
        hole.wait_for(1, 30)

        finished: list[float] = []
        for count in range(1, HEALTHY + 1):
            (job,) = platform.made(platform.create(callback_endpoint_id=alive.id))
            finished.append(time.monotonic())
            announcer.deliveries(
                row[0] for row in platform.rows("SELECT id FROM deliveries WHERE job_id = :id", id=job.id)
            )
            wait_until(lambda: len(arrivals) >= count, what=f"callback {count}")  # noqa: B023 - at once
        delays = [arrived - ended for arrived, ended in zip(arrivals, finished, strict=True)]
        p95 = statistics.quantiles(delays, n=20)[-1]

        waiting = platform.rows(
            "SELECT count(*) FROM deliveries WHERE endpoint_id = :id AND announce_at IS NOT NULL", id=dead.id
        )
        assert waiting == [(WAITING,)], "nothing of the dead one is lost"
    assert p95 < P95_SECONDS, f"p50 {statistics.median(delays):.3f} s, p95 {p95:.3f} s"
