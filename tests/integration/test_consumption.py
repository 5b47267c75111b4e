"""Whether a worker still consumes: looked at on a real RabbitMQ, also on one that is frozen, or refuses."""

import threading
from collections.abc import Callable, Iterator

import pytest
from amqp import Message
from amqp.exceptions import ConsumerCancelled
from celery.worker import state
from kombu import Connection, Consumer

from deploy.rabbitmq_server import RabbitMQServer
from tasks import consumption, topology
from tasks.consumption import Consumption
from tests.kit.faulty_link import FaultyLink, Mode, Weather
from tests.kit.upstream import Broker

JOBS = "waybill.jobs"


class AtWork:
    """What Celery keeps of a message whose task is not done yet."""

    delivery_info = {"routing_key": JOBS}


@pytest.fixture
def broker(rabbitmq: RabbitMQServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    monkeypatch.setattr(consumption, "SILENCE_SECONDS", -1)
    broker = Broker(rabbitmq.api_url, rabbitmq.url)
    with Connection(broker.url()) as connection:
        topology.declare(connection)
    yield broker
    broker.delete()


def consuming(connection: Connection, on_message: Callable[[object], None] = lambda _: None) -> Consumer:
    consumer = Consumer(
        connection.default_channel, topology.CELERY_QUEUES, on_message=on_message, prefetch_count=1
    )
    consumer.consume()
    return consumer


def test_broker_that_freezes_keeps_no_worker_waiting(broker: Broker) -> None:
    to_broker = FaultyLink("worker-rabbitmq", broker.port)
    connection = Connection(broker.url(to_broker.port))
    looked_at = Consumption(consuming(connection))
    looked_at.look()
    to_broker.set(Weather(Mode.BLACK_HOLE))
    failures: list[BaseException] = []

    def look() -> None:
        try:
            looked_at.look()
        except connection.connection_errors as error:
            failures.append(error)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    looking.join(30)
    to_broker.heal()
    assert failures
    connection.collect()
    to_broker.close()


def test_broker_that_refuses_is_left_for_another_connection(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Connection(broker.url()) as connection:
        looked_at = Consumption(consuming(connection))
        queue = next(one for one in looked_at.consumer.queues if one.name == JOBS)
        queue.queue_arguments = {"x-queue-type": "quorum"}  # as if it had been made otherwise meanwhile
        with pytest.raises(ConsumerCancelled, match="PRECONDITION_FAILED"):
            looked_at.look()


def test_queue_from_which_something_is_at_work_is_not_consumed_anew(broker: Broker) -> None:
    with Connection(broker.url()) as connection:
        received: list[object] = []
        looked_at = Consumption(consuming(connection, received.append))
        for _ in range(5):
            connection.default_channel.basic_publish(Message(b"{}"), "", JOBS)
        request = AtWork()
        state.reserved_requests.add(request)
        while not received:  # it may have come while we published
            connection.drain_events(timeout=60)
        for _ in range(3):
            looked_at.look()
        tags = dict(looked_at.consumer._active_tags)
        state.reserved_requests.discard(request)
        looked_at.look()
        assert looked_at.consumer._active_tags[JOBS] != tags[JOBS]


def test_look_while_a_thread_ends_a_request_is_made_up_for_by_the_next(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changing() -> Iterator[AtWork]:
        raise RuntimeError("Set changed size during iteration")
        yield AtWork()

    with Connection(broker.url()) as connection:
        looked_at = Consumption(consuming(connection))
        looked_at.look()
        tags = dict(looked_at.consumer._active_tags)
        with monkeypatch.context() as patched:
            patched.setattr(consumption, "reserved_requests", changing())
            looked_at.look()
        assert looked_at.consumer._active_tags == tags
        looked_at.look()
        assert looked_at.consumer._active_tags[JOBS] != tags[JOBS]
