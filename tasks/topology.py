"""Exchanges and queues on the broker, as both sides declare them. Names are in ``names.py``."""

from kombu import Connection, Exchange, Queue

from tasks.names import DEAD_INTAKE, DEAD_MESSAGES, DELIVERIES_QUEUE, EVENTS, INTAKE, JOB_QUEUES

DELIVERY_LIMIT = 20
"""Deliveries without an ack after which the broker gives a Celery message up."""

_CELERY_ARGUMENTS = {
    "x-queue-type": "quorum",
    "x-delivery-limit": DELIVERY_LIMIT,
    "x-dead-letter-exchange": DEAD_MESSAGES,
}

CELERY_QUEUES = [
    Queue(name, Exchange(""), routing_key=name, durable=True, queue_arguments=_CELERY_ARGUMENTS)
    for name in (*JOB_QUEUES.values(), DELIVERIES_QUEUE)
]
EVENTS_EXCHANGE = Exchange(EVENTS, type="topic", durable=True)
_DEAD_EXCHANGE = Exchange(DEAD_MESSAGES, type="fanout", durable=True)
_OTHERS = [
    Queue(DEAD_MESSAGES, _DEAD_EXCHANGE, durable=True, queue_arguments={"x-queue-type": "quorum"}),
    Queue(
        DEAD_INTAKE,
        Exchange(DEAD_INTAKE, type="fanout", durable=True),
        durable=True,
        queue_arguments={"x-queue-type": "quorum"},
    ),
    Queue(
        INTAKE,
        Exchange(INTAKE, type="topic", durable=True),
        routing_key="#",
        durable=True,
        queue_arguments={"x-queue-type": "quorum", "x-single-active-consumer": True},
    ),
]


def declare(connection: Connection) -> None:
    """Declare everything. Harmless where it exists already with the same arguments."""
    with connection.channel() as channel:
        EVENTS_EXCHANGE(channel).declare()
        for queue in (*CELERY_QUEUES, *_OTHERS):
            queue(channel).declare()
