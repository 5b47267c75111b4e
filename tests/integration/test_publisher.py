"""What a publisher makes of a broker that says nothing, and of one that is lost."""

import errno
from collections.abc import Iterator

import pytest
from kombu import Connection

from deploy.rabbitmq_server import RabbitMQServer
from models.errors import BrokerUnavailable
from tasks.app import make_app
from tasks.publisher import NotConfirmed, Publisher
from tests.kit.faulty_link import FaultyLink, Mode, Weather
from tests.kit.platform import Platform
from tests.kit.rabbitmqctl import silenced
from tests.kit.waiting import wait_until


@pytest.fixture
def to_broker(rabbitmq: RabbitMQServer) -> Iterator[FaultyLink]:
    link = FaultyLink("publisher-rabbitmq", rabbitmq.port)
    yield link
    link.close()


@pytest.fixture
def publisher(platform: Platform, rabbitmq: RabbitMQServer, to_broker: FaultyLink) -> Iterator[Publisher]:
    url = rabbitmq.url.replace(f":{rabbitmq.port}/", f":{to_broker.port}/")
    made = Publisher(make_app(platform.settings.model_copy(update={"broker_url": url})), patience_seconds=2)
    assert not said(made)
    yield made
    made.close()


def said(publisher: Publisher, queue: str = "nobody") -> bool:
    return publisher.message(b"{}", exchange="", routing_key=queue, content_type="application/json")


@pytest.fixture
def deaf(rabbitmq: RabbitMQServer) -> Iterator[str]:
    """A quorum queue."""
    with Connection(rabbitmq.url) as connection:
        arguments = {"x-queue-type": "quorum"}
        connection.default_channel.queue_declare("deaf", durable=True, auto_delete=False, arguments=arguments)
        yield "deaf"
        connection.default_channel.queue_delete("deaf")


def test_silence_of_a_queue_is_not_the_brokers(
    publisher: Publisher, rabbitmq: RabbitMQServer, deaf: str
) -> None:
    with silenced(rabbitmq, deaf):
        for _ in range(2):
            with pytest.raises(NotConfirmed):
                said(publisher, deaf)
            assert not said(publisher)
    wait_until(lambda: said(publisher, deaf), what="its word", timeout_seconds=20)


@pytest.mark.parametrize("mode", [Mode.BLACK_HOLE, Mode.RESET])
def test_silence_or_loss_of_the_broker_is_its_own(
    publisher: Publisher, to_broker: FaultyLink, mode: Mode
) -> None:
    to_broker.set(Weather(mode))
    with pytest.raises(BrokerUnavailable) as caught:
        said(publisher)
    assert not isinstance(caught.value, NotConfirmed)
    to_broker.heal()
    assert not said(publisher)


def test_network_that_gives_up_is_no_silence(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up(*_: object, **__: object) -> None:
        raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

    monkeypatch.setattr(publisher._channel, "wait", give_up)
    with pytest.raises(BrokerUnavailable) as caught:
        said(publisher)
    assert not isinstance(caught.value, NotConfirmed)
