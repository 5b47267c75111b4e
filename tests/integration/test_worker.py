"""A real Celery worker (prefork) on a real RabbitMQ: applies, survives kill -9 of a child, stops warm."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from celery import Celery
from kombu import Connection

from deploy.server import is_running
from models.ids import new_id
from models.job import Priority
from tasks.announcer import Announcer
from tasks.names import APPLY, DEAD_MESSAGES, DELIVER, DELIVERIES_QUEUE, JOB_QUEUES
from tests.kit.ageing import many_finished
from tests.kit.platform import Platform
from tests.kit.tickets import HELD
from tests.kit.waiting import wait_until

ROOT = Path(__file__).parents[2]
_RUN = """
import sys
from datetime import timedelta
from models.settings import load_settings
from tasks import worker
from tasks.pruner import Pruner
Pruner.__init__.__kwdefaults__["period"] = timedelta(seconds=1)
sys.exit(worker.run(load_settings(), name=sys.argv[1]))
"""
pytestmark = pytest.mark.timeout(600)


@contextmanager
def running_worker(
    platform: Platform, broker_url: str, log: Path, prelude: str = "", *, name: str = "worker"
) -> Iterator[psutil.Popen]:
    """A worker with two children, in a process group of its own, ended whatever happens."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WAYBILL_")}
    environment = inherited | {
        "PYTHONPATH": str(ROOT),
        "WAYBILL_DATABASE_URL": platform.settings.database_url,
        "WAYBILL_BROKER_URL": broker_url,
        "WAYBILL_RESOURCES": "tests.kit.tickets",
        "WAYBILL_DATA_DIR": str(log.parent),
        "WAYBILL_WORKER_CONCURRENCY": "2",
    }
    with log.open("w") as stream:
        process = psutil.Popen(
            [sys.executable, "-c", prelude + _RUN, name],
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
        )
    children: list[psutil.Process] = []
    try:
        yield process
    finally:
        if is_running(process):
            children = process.children(recursive=True)
        for one in (process, *children):
            if is_running(one):
                one.kill()
        process.wait()


@pytest.fixture
def announcer(app: Celery) -> Iterator[Announcer]:
    made = Announcer(app)
    yield made
    made.close()


def all_succeeded(platform: Platform) -> bool:
    return platform.rows("SELECT count(*) FROM jobs WHERE state <> 'succeeded'") == [(0,)]


def held_by(gate: Path) -> int:
    """The pid of the child that waits at the gate."""
    note = gate.with_suffix(".pid")
    wait_until(lambda: note.exists() and note.read_text(), timeout_seconds=90)
    return int(note.read_text())


def test_worker_applies_what_is_announced_outlives_a_killed_child_and_stops_warm(
    platform: Platform, broker_url: str, app: Celery, announcer: Announcer, tmp_path: Path
) -> None:
    log, gate, last = tmp_path / "worker.log", tmp_path / "gate", tmp_path / "last"
    many_finished(platform, 10)
    with running_worker(platform, broker_url, log) as worker:
        # announced jobs are applied
        creations = [platform.create() for _ in range(20)]
        ids = platform.accept(*creations)
        announcer.jobs({Priority.NORMAL: ids})
        wait_until(lambda: all_succeeded(platform), timeout_seconds=90)

        # so are those of which a newer version says more; by its own message, not by the sweep
        extra = platform.accept(platform.create())
        app.send_task(
            APPLY, args=([str(extra[0])],), kwargs={"novelty": {"a": 1}}, queue=JOB_QUEUES[Priority.NORMAL]
        )
        app.send_task(DELIVER, args=([str(new_id())],), kwargs={"novelty": 1}, queue=DELIVERIES_QUEUE)
        wait_until(lambda: all_succeeded(platform), timeout_seconds=90)
        with Connection(broker_url) as connection:
            channel = connection.channel()
            dead = channel.queue_declare(DEAD_MESSAGES, passive=True).message_count
            assert (dead, "novelty" in log.read_text()) == (0, False)

        # what is past its retention goes
        wait_until(lambda: platform.rows("SELECT count(*) FROM jobs") == [(21,)], timeout_seconds=90)

        # one whose announcement was lost is rescued
        platform.accept(platform.create())
        wait_until(lambda: all_succeeded(platform), timeout_seconds=90)

        # a child is killed in the middle of a batch: every job once
        ids = platform.accept(
            *(platform.patch(one.resource_id, name="twice") for one in creations),
            platform.ticket(str(new_id()), note=f"{HELD}{gate}"),
        )
        announcer.jobs({Priority.NORMAL: ids})
        os.kill(held_by(gate), signal.SIGKILL)
        gate.touch()
        wait_until(lambda: all_succeeded(platform), timeout_seconds=90)
        assert [platform.job(one).version for one in ids[:20]] == [2] * 20
        assert all(platform.events(one) == ["queued", "succeeded"] for one in ids)

        # a task under way is finished before it stops
        (held,) = platform.accept(platform.ticket(str(new_id()), note=f"{HELD}{last}"))
        announcer.jobs({Priority.NORMAL: [held]})
        held_by(last)
        worker.send_signal(signal.SIGTERM)
        wait_until(lambda: "Warm shutdown" in log.read_text(), timeout_seconds=90)
        assert platform.job(held).state == "queued"
        last.touch()
        assert worker.wait(timeout=60) == 0
        assert platform.job(held).state == "succeeded"


_INTERRUPTED = """
import signal
import threading
from celery.signals import worker_shutting_down

class Interrupted:
    def __init__(self):
        self._lock = threading.Lock()

    def __enter__(self):
        self._lock.acquire()
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            signal.raise_signal(signal.SIGINT)

    def __exit__(self, *_):
        self._lock.release()

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may be below nohup
worker_shutting_down.connect(lambda **_: print("told"), weak=False)
worker_shutting_down.lock = Interrupted()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_while_the_handler_of_another_holds_a_lock_does_not_hang_the_worker(
    platform: Platform, broker_url: str, tmp_path: Path, number: signal.Signals
) -> None:
    log = tmp_path / "worker.log"
    with running_worker(platform, broker_url, log, _INTERRUPTED) as worker:
        platform.accept(platform.create())
        wait_until(lambda: all_succeeded(platform), timeout_seconds=90)
        children = worker.children()
        for child in children:
            child.send_signal(signal.SIGHUP)  # as a terminal that goes away does, to all of them
        platform.accept(platform.create())
        wait_until(lambda: all_succeeded(platform), timeout_seconds=90)
        assert worker.children() == children
        worker.send_signal(number)
        assert worker.wait(timeout=60) == 0
    assert log.read_text().count("told") == 1
