"""A worker whose main loop stands still ends; one that only waits, for the broker or frozen, does not."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from celery import Celery

from deploy.rabbitmq_server import RabbitMQServer
from tests.integration.test_worker import all_succeeded, running_worker
from tests.kit.faulty_link import FaultyLink, Mode, Weather
from tests.kit.platform import Platform
from tests.kit.waiting import wait_until

PATIENCE_SECONDS = 90
_STALLED_SECONDS = 15
_IMPATIENT = f"""
import time
from celery.worker.control import control_command
from tasks.watchdog import Watchdog
Watchdog.__init__.__defaults__ = ({_STALLED_SECONDS},)

@control_command()
def hang(state):
    time.sleep(3600)

"""
pytestmark = pytest.mark.timeout(600)


def test_worker_whose_main_loop_hangs_ends_with_its_children_and_tells_where(
    platform: Platform, broker_url: str, app: Celery, tmp_path: Path
) -> None:
    log = tmp_path / "worker.log"
    with running_worker(platform, broker_url, log, _IMPATIENT) as worker:
        platform.accept(platform.create())
        wait_until(lambda: all_succeeded(platform), timeout_seconds=PATIENCE_SECONDS)
        children = worker.children(recursive=True)
        assert children
        app.control.broadcast("hang")
        assert worker.wait(PATIENCE_SECONDS) == os.EX_SOFTWARE
        assert not any(one.is_running() for one in children)
    assert "stands still" in log.read_text()
    assert " hang" in log.read_text(), "the stack"


@pytest.mark.parametrize("is_frozen", [False, True], ids=["broker away", "frozen"])
def test_worker_that_waits_for_longer_is_left_alone(
    platform: Platform, rabbitmq: RabbitMQServer, tmp_path: Path, is_frozen: bool
) -> None:
    link, log = FaultyLink("worker-rabbitmq", rabbitmq.port), tmp_path / "worker.log"
    url = rabbitmq.url.replace(f":{rabbitmq.port}/", f":{link.port}/")
    with running_worker(platform, url, log, _IMPATIENT) as worker:
        platform.accept(platform.create())
        wait_until(lambda: all_succeeded(platform), timeout_seconds=PATIENCE_SECONDS)
        if is_frozen:
            worker.send_signal(signal.SIGSTOP)
        else:
            link.set(Weather(Mode.RESET))
        time.sleep(1.5 * _STALLED_SECONDS)
        worker.send_signal(signal.SIGCONT)
        link.heal()
        time.sleep(1.3 * _STALLED_SECONDS)
        assert worker.status() != psutil.STATUS_ZOMBIE
        platform.accept(platform.create())
        wait_until(lambda: all_succeeded(platform), timeout_seconds=PATIENCE_SECONDS)
    link.close()
