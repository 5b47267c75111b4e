"""Exchanges and queues on the broker, declared by whoever comes first. Names are in ``names.py``.

Celery's queues carry wake-up calls that the sweep repeats, so a delivery limit and plain (at most
once) dead-lettering do; what dies there is collected (``consumers.dead_messages``). The intake queue
carries what is not in the ledger yet: it has no delivery limit, and what expires in it is handed on
at least once, to be refused with a reason.

A queue that is missing is made after a pause. It may have been deleted just now, and who consumed from it
not been told yet: where it is made again within some 30 ms, RabbitMQ before 4.0 (seen with 3.10) lets that
consumer consume from the new queue, forgets it at once, and never tells it: its messages reach nobody.
It may be made again without a pause all the same, by others, or by us where it is deleted as we look. So
whoever hears nothing from a queue consumes it anew now and then.
"""

import logging
import time
from collections.abc import Mapping
from typing import Any

from amqp.exceptions import AccessRefused, NotFound, PreconditionFailed
from kombu import Connection, Exchange, Queue

from models.errors import ConfigurationError
from tasks.names import (
    DEAD_INTAKE,
    DEAD_MESSAGES,
    DELIVERIES_QUEUE,
    EVENTS,
    EXPIRED_INTAKE,
    INTAKE,
    JOB_QUEUES,
)

DELIVERY_LIMIT = 20
"""Deliveries without an ack after which the broker gives a Celery message up."""

DELETION_SECONDS = 0.5
"""How long the broker may take to tell the consumers of a deleted queue."""
SILENCE_SECONDS = 60.0
"""After so long without a message a queue is consumed anew, where the broker may have forgotten us."""

_log = logging.getLogger("waybill.topology")
_QUORUM = {"x-queue-type": "quorum"}


def _quorum_queue(name: str, exchange: Exchange, routing_key: str = "", **arguments: object) -> Queue:
    spelled = {f"x-{key.replace('_', '-')}": value for key, value in arguments.items()}
    return Queue(
        name, exchange, routing_key=routing_key, durable=True, queue_arguments={**_QUORUM, **spelled}
    )


def _exchange(name: str, kind: str) -> Exchange:
    return Exchange(name, type=kind, durable=True)


EVENTS_EXCHANGE = _exchange(EVENTS, "topic")

CELERY_QUEUES = [
    _quorum_queue(name, Exchange(""), name, delivery_limit=DELIVERY_LIMIT, dead_letter_exchange=DEAD_MESSAGES)
    for name in (*JOB_QUEUES.values(), DELIVERIES_QUEUE)
]

INTAKE_QUEUE = _quorum_queue(
    INTAKE,
    _exchange(INTAKE, "topic"),
    "#",
    single_active_consumer=True,
    dead_letter_exchange=EXPIRED_INTAKE,
    dead_letter_strategy="at-least-once",
    overflow="reject-publish",  # what the broker asks for beside at-least-once; there is no length limit
)
EXPIRED_QUEUE = _quorum_queue(EXPIRED_INTAKE, _exchange(EXPIRED_INTAKE, "fanout"))
DEAD_INTAKE_QUEUE = _quorum_queue(DEAD_INTAKE, _exchange(DEAD_INTAKE, "fanout"))
DEAD_MESSAGES_QUEUE = _quorum_queue(DEAD_MESSAGES, _exchange(DEAD_MESSAGES, "fanout"))

_TARGETS_FIRST = (*CELERY_QUEUES, DEAD_INTAKE_QUEUE, EXPIRED_QUEUE)


def declare(connection: Connection) -> None:
    """Declare everything. Harmless where it exists already with the same arguments.

    A user who may not configure finds it enough that the queues and exchanges exist.

    Raises:
        ConfigurationError: A queue or exchange exists with other arguments, or is missing and may
            not be made; one line that says which and what to do.
    """
    _await_deletion(connection, *_TARGETS_FIRST, DEAD_MESSAGES_QUEUE, INTAKE_QUEUE)
    _declare(connection, EVENTS_EXCHANGE)
    limit = unlimited(server_properties(connection))
    _declare_unlimited(connection, DEAD_MESSAGES_QUEUE, limit)
    for queue in _TARGETS_FIRST:
        _declare(connection, queue)
    _declare_unlimited(connection, INTAKE_QUEUE, limit)


def declare_celery_queues(connection: Connection) -> None:
    """Declare what Celery's workers consume, as :func:`declare` does."""
    _await_deletion(connection, *CELERY_QUEUES)
    for queue in CELERY_QUEUES:
        _declare(connection, queue)


def server_properties(connection: Connection) -> Mapping[str, Any]:
    """What the broker says of itself; empty for the embedded one."""
    return getattr(connection.connection, "server_properties", None) or {}


def forgets_consumers(server: Mapping[str, Any]) -> bool:
    """Whether this server, given its properties, may forget who consumes from a queue."""
    return server.get("product") == "RabbitMQ" and _major(server) < 4


def unlimited(server: Mapping[str, Any]) -> dict[str, int]:
    """The argument that means "no delivery limit" to this server, given its properties.

    From 4.0 on the broker gives up after 20 deliveries unless told ``-1``; 3.x has no limit of its
    own, and takes a negative one for zero: it would drop a message at its first return.
    """
    is_limiting = server.get("product") == "RabbitMQ" and _major(server) >= 4
    return {"x-delivery-limit": -1} if is_limiting else {}


def _declare_unlimited(connection: Connection, queue: Queue, limit: Mapping[str, int]) -> None:
    """Declare a queue whose messages stand nowhere else yet: the broker must not give them up."""
    arguments = {**(queue.queue_arguments or {}), **limit}
    try:
        _declare(connection, Queue(queue.name, queue.exchange, queue.routing_key, queue_arguments=arguments))
    except ConfigurationError:
        if not limit:
            raise
        _declare(connection, queue)
        _log.warning(
            "queue made before RabbitMQ 4 keeps the broker's delivery limit: delete it when it is empty, "
            "it is then made anew without one",
            extra={"queue": queue.name},
        )


def _await_deletion(connection: Connection, *queues: Queue) -> None:
    """Where a queue is missing, wait until whoever consumed from it knows."""
    if connection.transport.driver_type != "amqp":
        return
    try:
        with connection.channel() as channel:
            for queue in queues:
                queue(channel).queue_declare(passive=True)
    except NotFound:
        time.sleep(DELETION_SECONDS)


def _declare(connection: Connection, thing: Queue | Exchange) -> None:
    """Declare one queue (with its exchange and binding) or exchange, on a channel of its own.

    The broker closes the channel of a declaration that it refuses.
    """
    kind = type(thing).__name__.lower()
    try:
        with connection.channel() as channel:
            thing(channel).declare()
    except PreconditionFailed as error:
        raise ConfigurationError(
            f"{kind} {thing.name} exists on the broker with other arguments ({error.reply_text}): "
            "delete it, or name another vhost in WAYBILL_BROKER_URL"
        ) from error
    except AccessRefused:
        _require(connection, thing, kind)


def _require(connection: Connection, thing: Queue | Exchange, kind: str) -> None:
    try:
        with connection.channel() as channel:
            if isinstance(thing, Queue):
                thing(channel).queue_declare(passive=True)
            else:
                thing(channel).declare(passive=True)
    except connection.channel_errors as error:
        raise ConfigurationError(
            f"{kind} {thing.name} is missing on the broker and this user may not make it: "
            "grant configure permission, or declare it there"
        ) from error


def _major(server: Mapping[str, Any]) -> int:
    major = str(server.get("version", "")).partition(".")[0]
    return int(major) if major.isdecimal() else 0
