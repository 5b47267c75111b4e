"""A queue deleted under running workers: each of them consumes the one that is made in its place."""

import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from celery import Celery
from kombu import Connection

from models.job import Priority
from tasks import topology
from tasks.announcer import Announcer
from tasks.names import JOB_QUEUES
from tests.integration.test_worker import all_succeeded, running_worker
from tests.kit.platform import Platform
from tests.kit.waiting import wait_until

JOBS = JOB_QUEUES[Priority.NORMAL]
WORKERS = 2
DELETIONS = 4
_HARD_OF_HEARING = """
from celery.worker import loops
loops._quick_drain.__defaults__ = (5.0,)  # for so long it hears no error, at the beginning of each connection
"""
_IMPATIENT = """
from tasks import consumption
consumption.SILENCE_SECONDS = 3
"""
pytestmark = pytest.mark.timeout(600)


def test_workers_whose_queue_is_deleted_consume_the_one_that_is_made_again(
    platform: Platform, broker_url: str, app: Celery, tmp_path: Path
) -> None:
    announcer = Announcer(app)
    with ExitStack() as stack:
        stack.callback(announcer.close)
        for number in range(WORKERS):
            name = f"worker-{number}"
            log = tmp_path / f"{name}.log"
            stack.enter_context(running_worker(platform, broker_url, log, name=name))
        for _ in range(DELETIONS):
            await_consumers(broker_url, WORKERS)
            for _ in range(8):
                announcer.jobs({Priority.NORMAL: platform.accept(platform.create())})
            wait_until(lambda: all_succeeded(platform), timeout_seconds=60)
            delete(broker_url)
        await_consumers(broker_url, WORKERS)


def test_worker_that_did_not_hear_of_the_deletion_finds_out(
    platform: Platform, broker_url: str, tmp_path: Path
) -> None:
    with running_worker(platform, broker_url, tmp_path / "worker.log", _HARD_OF_HEARING):
        await_consumers(broker_url, 1)
        delete(broker_url)
        await_consumers(broker_url, 1)


def test_worker_that_the_broker_forgot_consumes_anew(
    platform: Platform, broker_url: str, app: Celery, tmp_path: Path
) -> None:
    announcer = Announcer(app)
    with ExitStack() as stack:
        stack.callback(announcer.close)
        stack.enter_context(running_worker(platform, broker_url, tmp_path / "worker.log", _IMPATIENT))
        await_consumers(broker_url, 1)
        time.sleep(0.5)  # Celery hears what the broker says
        with Connection(broker_url) as connection:
            connection.default_channel.queue_delete(JOBS)
            (queue,) = (one for one in topology.CELERY_QUEUES if one.name == JOBS)
            queue(connection.default_channel).queue_declare()
        await_consumers(broker_url, 1)
        for _ in range(4):
            announcer.jobs({Priority.NORMAL: platform.accept(platform.create())})
        wait_until(lambda: all_succeeded(platform), timeout_seconds=60)


def await_consumers(broker_url: str, expected: int) -> None:
    """Wait until so many workers consume."""

    def are_there() -> bool:
        with Connection(broker_url) as connection:
            try:
                found = connection.default_channel.queue_declare(JOBS, passive=True)
            except connection.channel_errors:
                return False
            return bool(found.consumer_count == expected)

    wait_until(are_there, timeout_seconds=60, every_seconds=0.1, what=f"{expected} workers to consume")


def delete(broker_url: str) -> None:
    """Delete the queue, as an operator might."""
    with Connection(broker_url) as connection:
        connection.default_channel.queue_delete(JOBS)
