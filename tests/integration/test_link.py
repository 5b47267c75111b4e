"""The consumers' link: what RabbitMQ forgot is consumed anew, and that it is frozen is noticed."""

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from amqp import Message
from kombu import Connection

from consumers import link as link_module
from consumers.link import Link, connect
from deploy.rabbitmq_server import RabbitMQServer
from tasks import topology
from tests.kit.faulty_link import FaultyLink, Mode, Weather
from tests.kit.upstream import Broker


@pytest.fixture
def broker(rabbitmq: RabbitMQServer) -> Iterator[Broker]:
    broker = Broker(rabbitmq.api_url, rabbitmq.url)
    yield broker
    broker.delete()


def opened(url: str) -> Link:
    link = Link(connect(url, "test"), prefetch=10, clock=lambda: datetime.now(UTC))
    link.open()
    return link


def test_queue_that_is_silent_is_consumed_anew_though_another_is_busy(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "SILENCE_SECONDS", 2)
    link, is_enough = opened(broker.url()), threading.Event()

    def keep_busy() -> None:
        with Connection(broker.url()) as connection:
            while not is_enough.wait(0.02):
                connection.default_channel.basic_publish(Message(b"late"), "waybill.intake.expired")

    busy = threading.Thread(target=keep_busy, daemon=True)
    busy.start()
    with Connection(broker.url()) as connection:
        channel = connection.default_channel
        channel.queue_delete("waybill.intake")
        topology.INTAKE_QUEUE(channel).declare()
        channel.basic_publish(Message(b"here"), "waybill.intake", "entities.create")
        deadline, bodies = time.monotonic() + 20, set()
        while b"here" not in bodies and time.monotonic() < deadline:
            if taken := link.take(5, 0.5):
                link.acknowledge(taken)
            bodies.update(one.body for one in taken)
    is_enough.set()
    busy.join()
    link.close()
    assert bodies == {b"here", b"late"}


def test_broker_that_freezes_keeps_no_link_waiting(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    to_broker = FaultyLink("link-rabbitmq", broker.port)
    link = opened(broker.url(to_broker.port))
    monkeypatch.setattr(link_module, "SILENCE_SECONDS", 0)
    to_broker.set(Weather(Mode.BLACK_HOLE))
    failures: list[BaseException] = []

    def take() -> None:
        try:
            link.take(5, 0.5)
        except Exception as error:
            failures.append(error)

    taking = threading.Thread(target=take, daemon=True)
    taking.start()
    taking.join(30)
    to_broker.heal()
    assert failures
    link.close()
    to_broker.close()
