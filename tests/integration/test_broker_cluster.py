"""A broker of several nodes, named by a list of URLs: nobody depends on a single one."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from celery import Celery
from kombu import Connection, Producer, Queue
from kombu.exceptions import OperationalError

from consumers.link import connect
from consumers.publisher import end
from deploy.doctor import examine
from deploy.rabbitmq_server import RabbitMQServer
from models.job import Priority
from tasks.announcer import Announcer
from tasks.app import make_app
from tasks.names import DEAD_INTAKE, JOB_QUEUES
from tasks.presence import Presence
from tasks.topology import declare
from tests.integration.test_worker import all_succeeded, running_worker
from tests.kit.faulty_link import FaultyLink, Mode, Weather
from tests.kit.platform import Platform
from tests.kit.rabbitmq_cluster import RabbitMQCluster, rabbitmq_cluster
from tests.kit.waiting import wait_until

JOBS = JOB_QUEUES[Priority.NORMAL]
PATIENCE_SECONDS = 60
ENOUGH_TO_CONNECT = 620
"""Bytes of the broker's for a handshake, and too few for what a worker does next."""
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RabbitMQCluster]:
    """Three nodes: nobody else's."""
    with rabbitmq_cluster() as made:
        yield made


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Takes connections and says nothing, as a frozen node."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


def test_doctor_names_a_queue_that_does_not_outlive_its_node(
    cluster: RabbitMQCluster, platform: Platform
) -> None:
    settings = platform.settings.model_copy(
        update={"broker_url": cluster.url, "broker_api_url": cluster.api_url}
    )

    def told() -> list[tuple[bool, str]]:
        return [(one.is_well, one.detail) for one in examine(settings) if one.part == "members"]

    thin = Queue(DEAD_INTAKE, queue_arguments={"x-queue-type": "quorum", "x-quorum-initial-group-size": 1})
    with Connection(cluster.url) as connection:
        thin(connection.default_channel).declare()
        assert told() == [(False, f"{DEAD_INTAKE} has members on 1 of 3 nodes")]
        thin(connection.default_channel).delete()
        declare(connection)
    assert told() == [(True, "every queue survives any one of 3 nodes")]


def test_worker_and_api_go_on_when_the_node_that_leads_their_queue_dies(
    cluster: RabbitMQCluster, platform: Platform, tmp_path: Path
) -> None:
    with Connection(cluster.url) as connection:
        declare(connection)
    queues = [one for one in cluster.api().call("GET", "/queues") if one["name"].startswith("waybill.")]
    assert {len(one["members"]) for one in queues} == {3}
    assert len({one["leader"] for one in queues}) > 1, "they are not spread"
    leader = cluster.leader_of(JOBS)
    assert leader is not None
    urls = ";".join([leader.url, *(node.url for node in cluster.nodes if node is not leader)])
    app = make_app(platform.settings.model_copy(update={"broker_url": urls}))
    announcer, presence, log = Announcer(app), Presence(app), tmp_path / "worker.log"

    def work() -> None:
        ids = platform.accept(*(platform.create() for _ in range(20)))
        announcer.jobs({Priority.NORMAL: ids})
        wait_until(lambda: all_succeeded(platform), timeout_seconds=PATIENCE_SECONDS)

    with running_worker(platform, urls, log):
        work()
        wait_until(lambda: presence.missing() is None, timeout_seconds=PATIENCE_SECONDS)
        leader.kill()
        work()
        wait_until(lambda: presence.missing() is None, timeout_seconds=PATIENCE_SECONDS)
        work()
    announcer.close()
    presence.close()
    assert cluster.leader_of(JOBS) not in (None, leader)

    end(connect(urls, "consumer"))
    told = examine(platform.settings.model_copy(update={"broker_url": urls}))
    assert [one.is_well for one in told if one.part == "broker"] == [False, True, True]
    password = leader.url.partition("@")[0].rpartition(":")[2]
    assert password not in log.read_text()


def test_silent_node_costs_one_attempt(
    platform: Platform, rabbitmq: RabbitMQServer, silent_port: int
) -> None:
    silent = rabbitmq.url.replace(f":{rabbitmq.port}/", f":{silent_port}/")
    app = make_app(platform.settings.model_copy(update={"broker_url": f"{silent};{rabbitmq.url}"}))
    presence = Presence(app)
    wait_until(lambda: presence.queue(JOBS) is not None, timeout_seconds=PATIENCE_SECONDS)
    presence.close()


def _heartbeat(app: Celery) -> tuple[Producer, Callable[[], object]]:
    events = app.events.Dispatcher(app.connection_for_write(), hostname="worker@here", enabled=True)
    return events.producer, lambda: events.send("worker-heartbeat", retry=True)


def _answer(app: Celery) -> tuple[Producer, Callable[[], object]]:
    connection = app.connection_for_write()
    producer = Producer(connection)
    reply = partial(
        app.control.mailbox(connection)._publish_reply, {}, "reply.celery.pidbox", "asker", "ticket"
    )
    return producer, lambda: reply(producer=producer)


@pytest.mark.parametrize("prepare", [_heartbeat, _answer])
def test_what_a_worker_says_over_a_connection_that_kombu_has_lost_sight_of_comes_to_an_end(
    platform: Platform,
    rabbitmq: RabbitMQServer,
    prepare: Callable[[Celery], tuple[Producer, Callable[[], object]]],
) -> None:
    link = FaultyLink("worker-rabbitmq", rabbitmq.port)
    url = rabbitmq.url.replace(f":{rabbitmq.port}/", f":{link.port}/")
    producer, say = prepare(make_app(platform.settings.model_copy(update={"broker_url": url})))

    def speak() -> None:
        with suppress(OperationalError):
            say()

    assert producer.channel.is_open
    producer.connection._connection = None  # as it was seen; its channel is still in use
    link.set(Weather(Mode.RESET))
    link.heal()
    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    speaker.join(PATIENCE_SECONDS)
    assert not speaker.is_alive(), "it tries for ever"
    link.close()


def test_worker_whose_connections_do_not_last_does_not_flood_the_broker(
    platform: Platform, rabbitmq: RabbitMQServer, tmp_path: Path
) -> None:
    link, log = FaultyLink("worker-rabbitmq", rabbitmq.port), tmp_path / "worker.log"
    url = rabbitmq.url.replace(f":{rabbitmq.port}/", f":{link.port}/")

    def connected() -> int:
        return log.read_text().count('"Connected to ')

    with running_worker(platform, url, log):
        wait_until(lambda: connected() == 1, timeout_seconds=PATIENCE_SECONDS)
        began = time.monotonic()
        link.set(Weather(Mode.RESET))
        link.set(Weather(Mode.TRUNCATE, after_bytes=ENOUGH_TO_CONNECT))
        wait_until(lambda: connected() >= 6, timeout_seconds=PATIENCE_SECONDS)
        assert time.monotonic() - began > 0.25 + 0.5 + 1 + 2
        link.heal()
        platform.accept(platform.create())
        wait_until(lambda: all_succeeded(platform), timeout_seconds=PATIENCE_SECONDS)
    link.close()
