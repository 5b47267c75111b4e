"""What a publisher makes of a broker that says nothing, and of one that is lost."""

from collections.abc import Iterator

import pytest

from deploy.rabbitmq_server import RabbitMQServer
from models.errors import BrokerUnavailable
from tasks.app import make_app
from tasks.publisher import NotConfirmed, Publisher
from tests.kit.faulty_link import FaultyLink, Mode, Weather
from tests.kit.platform import Platform


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


def said(publisher: Publisher) -> bool:
    return publisher.message(b"{}", exchange="", routing_key="nobody", content_type="application/json")


def test_silence_is_no_loss(publisher: Publisher, to_broker: FaultyLink) -> None:
    to_broker.set(Weather(Mode.BLACK_HOLE))
    with pytest.raises(NotConfirmed):
        said(publisher)
    to_broker.heal()
    assert not said(publisher)


def test_loss_is_no_silence(publisher: Publisher, to_broker: FaultyLink) -> None:
    to_broker.set(Weather(Mode.RESET))
    with pytest.raises(BrokerUnavailable) as caught:
        said(publisher)
    assert not isinstance(caught.value, NotConfirmed)
    to_broker.heal()
    assert not said(publisher)
