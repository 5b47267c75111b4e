"""Lives and deaths of two workers and their broker, as nodes of pytest-celery over processes of our own."""

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from celery import Celery
from pytest_celery import (
    CeleryBrokerCluster,
    CeleryTestSetup,
    CeleryTestWorker,
    CeleryWorkerCluster,
    RabbitMQTestBroker,
)

from deploy.rabbitmq_server import RabbitMQServer, find_rabbitmq
from models.ids import new_id
from models.job import Priority
from tasks.announcer import Announcer
from tasks.app import make_app
from tests.integration.test_worker import held_by
from tests.kit.platform import Platform
from tests.kit.process_node import ServerContainer, WorkerContainer, python, worker_environment
from tests.kit.servers import require, temporary_data_directory
from tests.kit.tickets import HELD
from tests.kit.waiting import wait_until

_RUN = """
import sys
from models.settings import load_settings
from tasks import worker
sys.exit(worker.run(load_settings(), name=sys.argv[1]))
"""
pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def celery_broker() -> Iterator[RabbitMQTestBroker]:
    """A RabbitMQ of its own: it is killed."""
    require(find_rabbitmq)
    with temporary_data_directory() as directory:
        node = RabbitMQTestBroker(ServerContainer(RabbitMQServer(directory)))
        assert node.ready()
        yield node
        node.teardown()


@pytest.fixture
def celery_backend_cluster() -> None:
    """The ledger is the result."""


@pytest.fixture
def celery_backend_cluster_config() -> None:
    """The same."""


@pytest.fixture
def celery_setup_app(celery_broker_cluster: CeleryBrokerCluster, platform: Platform) -> Celery:
    url = celery_broker_cluster.config()["host_urls"][0]
    return make_app(platform.settings.model_copy(update={"broker_url": url}))


@pytest.fixture
def celery_worker_cluster(
    celery_setup_app: Celery, platform: Platform, tmp_path: Path
) -> Iterator[CeleryWorkerCluster]:
    """Two workers of two processes."""
    environment = worker_environment(
        {
            "WAYBILL_DATABASE_URL": platform.settings.database_url,
            "WAYBILL_BROKER_URL": celery_setup_app.conf.broker_url,
            "WAYBILL_RESOURCES": "tests.kit.tickets",
            "WAYBILL_DATA_DIR": str(tmp_path),
            "WAYBILL_WORKER_CONCURRENCY": "2",
        }
    )
    workers = [
        CeleryTestWorker(
            WorkerContainer(
                name, python("-c", _RUN, name), environment, tmp_path, lambda log: "Connected to amqp" in log
            ),
            celery_setup_app,
        )
        for name in ("first", "second")
    ]
    assert all(worker.ready() for worker in workers)
    yield CeleryWorkerCluster(*workers)
    for worker in workers:
        worker.teardown()


@pytest.fixture
def announcer(celery_setup_app: Celery) -> Iterator[Announcer]:
    made = Announcer(celery_setup_app)
    yield made
    made.close()


def _accept(platform: Platform, announcer: Announcer, count: int = 20) -> list[UUID]:
    ids = platform.accept(*(platform.create() for _ in range(count)))
    announcer.jobs({Priority.NORMAL: ids})
    return ids


def _all_once(platform: Platform, ids: list[UUID], seconds: float = 60) -> None:
    wait_until(
        lambda: set(platform.states(ids)) == {"succeeded"}, timeout_seconds=seconds, what="all applied"
    )
    assert all(platform.job(one).version == 1 for one in ids)
    assert all(platform.events(one) == ["queued", "succeeded"] for one in ids)


def test_killed_worker_is_replaced_by_the_other_and_comes_back(
    celery_setup: CeleryTestSetup, platform: Platform, announcer: Announcer, tmp_path: Path
) -> None:
    assert celery_setup.ready(control=True)
    gate = tmp_path / "gate"
    held, *others = platform.accept(
        platform.ticket(str(new_id()), note=f"{HELD}{gate}"), *(platform.create() for _ in range(20))
    )
    announcer.jobs({Priority.NORMAL: [held, *others]})
    victim = _node_of(celery_setup, held_by(gate))
    victim.kill()
    gate.touch()
    _all_once(platform, [held, *others])
    assert victim.container.status == "exited"
    victim.restart()
    _all_once(platform, _accept(platform, announcer))


def test_told_to_stop_a_worker_finishes_what_it_has_and_the_other_goes_on(
    celery_setup: CeleryTestSetup, platform: Platform, announcer: Announcer, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    (held,) = platform.accept(platform.ticket(str(new_id()), note=f"{HELD}{gate}"))
    announcer.jobs({Priority.NORMAL: [held]})
    leaving = _node_of(celery_setup, held_by(gate))
    process = leaving.container.process
    leaving.kill("SIGTERM")
    leaving.assert_log_exists("Warm shutdown")
    _all_once(platform, _accept(platform, announcer))
    assert platform.job(held).state == "queued"
    gate.touch()
    assert process.wait(30) == 0
    assert platform.job(held).state == "succeeded"
    assert platform.events(held) == ["queued", "succeeded"]


def test_killed_broker_loses_nothing(
    celery_setup: CeleryTestSetup, platform: Platform, announcer: Announcer
) -> None:
    _all_once(platform, _accept(platform, announcer))
    assert celery_setup.broker is not None
    celery_setup.broker.kill()
    meanwhile = _accept(platform, announcer)
    celery_setup.broker.restart()
    _all_once(platform, meanwhile)
    assert all(worker.container.status == "running" for worker in celery_setup.worker_cluster)
    _all_once(platform, _accept(platform, announcer))


def _node_of(setup: CeleryTestSetup, pid: int) -> CeleryTestWorker:
    """The worker whose child this is."""
    for worker in setup.worker_cluster:
        if pid in {child.pid for child in worker.container.process.children(recursive=True)}:
            return worker
    raise AssertionError(f"no worker has a child {pid}")
