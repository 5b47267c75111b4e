"""Dramatiq, the same work: one actor call per row, one ORM commit per call, every default.

Defaults mean: 8 threads per process, acknowledged when done, retries and time limits on, prefetch
twice the threads, durable classic queues with a dead-letter queue.
"""

import sys
from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from tests.bench.payload import entity
from tests.bench.peers.entity import BROKER_URL, Entity, Session

dramatiq.set_broker(RabbitmqBroker(url=BROKER_URL))


@dramatiq.actor
def create_entity(name: str, description: str, metadata: dict[str, Any]) -> None:
    with Session() as session:
        session.add(Entity(name=name, description=description, metadata_=metadata))
        session.commit()


if __name__ == "__main__":
    for number in range(int(sys.argv[1])):
        create_entity.send(**entity(number))
