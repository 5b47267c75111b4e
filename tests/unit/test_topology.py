"""The broker's topology: what each server is told, and that an embedded broker takes it too."""

from typing import Any

import pytest
from kombu import Connection

from tasks import topology
from tasks.names import JOB_QUEUES


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ({"product": "RabbitMQ", "version": "3.10.8"}, {}),
        ({"product": "RabbitMQ", "version": "3.13.7"}, {}),
        ({"product": "RabbitMQ", "version": "4.0.1"}, {"x-delivery-limit": -1}),
        ({"product": "RabbitMQ", "version": "4.1.0-rc.1"}, {"x-delivery-limit": -1}),
        ({"product": "LavinMQ", "version": "4.0"}, {}),
        ({}, {}),
    ],
)
def test_no_delivery_limit_is_said_as_the_server_understands_it(
    server: dict[str, Any], expected: dict[str, int]
) -> None:
    assert topology.unlimited(server) == expected


def test_celery_queues_are_quorum_queues_with_a_limit_and_a_dead_letter_exchange() -> None:
    assert {queue.name for queue in topology.CELERY_QUEUES} == {*JOB_QUEUES.values(), "waybill.deliveries"}
    for queue in topology.CELERY_QUEUES:
        assert queue.queue_arguments == {
            "x-queue-type": "quorum",
            "x-delivery-limit": 20,
            "x-dead-letter-exchange": "waybill.jobs.dead",
        }


def test_declaring_on_the_embedded_broker_is_harmless() -> None:
    with Connection("memory://") as connection:
        topology.declare(connection)
        topology.declare(connection)
