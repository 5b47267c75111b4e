"""Celery as its tutorial teaches it: one task per row, one ORM commit per task, every default.

Defaults mean: prefork, acknowledged on receipt, prefetch 4 per process, one durable classic queue,
JSON, persistent messages, no result backend, no events, log level WARNING.
"""

import sys
from typing import Any

from celery import Celery

from tests.bench.payload import entity
from tests.bench.peers.entity import BROKER_URL, Entity, Session

app = Celery("tutorial", broker=BROKER_URL)


@app.task
def create_entity(name: str, description: str, metadata: dict[str, Any]) -> None:
    with Session() as session:
        session.add(Entity(name=name, description=description, metadata_=metadata))
        session.commit()


if __name__ == "__main__":
    for number in range(int(sys.argv[1])):
        # by name, because this module is __main__ here and something else in the worker
        app.send_task("tests.bench.peers.tutorial_celery.create_entity", kwargs=entity(number))
