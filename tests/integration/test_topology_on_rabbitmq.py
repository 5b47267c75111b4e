"""The topology on a real RabbitMQ: what it says when the broker has something else under our names."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from kombu import Connection, Queue

from deploy.rabbitmq_server import RabbitMQServer
from models.errors import ConfigurationError
from tasks import topology
from tests.kit.upstream import Broker


@pytest.fixture
def broker(rabbitmq: RabbitMQServer) -> Iterator[Broker]:
    broker = Broker(rabbitmq.api_url, rabbitmq.url)
    yield broker
    broker.delete()


def test_declared_twice_it_is_the_same(broker: Broker) -> None:
    with Connection(broker.url()) as connection:
        topology.declare(connection)
        topology.declare(connection)

    queues = {one["name"]: one for one in broker.call("GET", f"/queues/{broker.vhost}")}
    assert {one["type"] for one in queues.values()} == {"quorum"}
    assert queues["waybill.intake"]["arguments"]["x-single-active-consumer"] is True
    assert "x-delivery-limit" not in queues["waybill.intake"]["arguments"]
    assert queues["waybill.jobs"]["arguments"]["x-delivery-limit"] == 20


def test_queue_with_other_arguments_is_one_clear_line(broker: Broker) -> None:
    with Connection(broker.url()) as connection:
        Queue("waybill.dead", durable=True)(connection.channel()).queue_declare()
        with pytest.raises(
            ConfigurationError, match=r"queue waybill\.dead exists .* with other arguments"
        ) as told:
            topology.declare(connection)
    assert "\n" not in str(told.value)


def test_user_who_may_not_configure_is_content_with_what_exists(broker: Broker) -> None:
    name = f"low-{uuid.uuid4().hex[:8]}"
    broker.add_user(name)
    permissions = {"configure": "^$", "write": ".*", "read": ".*"}
    broker.call("PUT", f"/permissions/{broker.vhost}/{name}", permissions)
    url = f"amqp://{name}:{name}@127.0.0.1:{broker.port}/{broker.vhost}"

    with Connection(url) as low:
        with pytest.raises(
            ConfigurationError, match="is missing on the broker and this user may not make it"
        ):
            topology.declare(low)
        with Connection(broker.url()) as high:
            topology.declare(high)
        topology.declare(low)


@pytest.mark.parametrize(
    ("queue", "declare"),
    [("waybill.intake", topology.declare), ("waybill.jobs", topology.declare_celery_queues)],
)
def test_consumer_of_a_deleted_queue_knows_before_it_is_made_again(
    broker: Broker, queue: str, declare: Callable[[Connection], None]
) -> None:
    told: list[str] = []
    with Connection(broker.url()) as connection, Connection(broker.url()) as other:
        topology.declare(connection)
        consuming = connection.channel()
        consuming.basic_consume(queue, callback=lambda _: None, on_cancel=told.append)
        assert other.connect()
        other.channel().queue_delete(queue)
        declare(other)
        with suppress(TimeoutError):
            connection.drain_events(timeout=60)
    assert told


def test_intake_queue_of_an_older_broker_is_used_as_it_is(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Connection(broker.url()) as connection:
        topology.declare(connection)
        monkeypatch.setattr(topology, "unlimited", lambda _: {"x-delivery-limit": -1})
        topology.declare(connection)
    assert "keeps the broker's delivery limit" in caplog.text
