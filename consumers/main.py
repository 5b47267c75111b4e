"""The consumer process: wires the intake loop together, and stops it when it is told to."""

import logging
import os
import signal
import threading
from collections.abc import Sequence
from types import FrameType

from kombu import Connection

from consumers.callers import Callers
from consumers.dead_messages import BATCH as COLLECTED_AT_ONCE
from consumers.dead_messages import DeadMessageCollector
from consumers.desk import Desk
from consumers.intake import PREFETCH, IntakeLoop
from consumers.link import Link, connect
from consumers.publisher import Publisher, end
from consumers.reply_queues import ANY_QUEUE, ReplyQueues
from models import log
from models.container import Container
from models.database_clock import DatabaseClock
from models.dead_letters.messages import DeadMessages
from models.errors import ConfigurationError
from models.settings import Settings
from models.stop_deadline import StopDeadline, ignore_signals
from tasks.announcer import Announcer
from tasks.app import make_app
from tasks.names import DEAD_MESSAGES, EXPIRED_INTAKE, INTAKE
from tasks.topology import declare

_log = logging.getLogger("waybill.intake")


def run(settings: Settings) -> int:
    """Consume upstream messages until SIGTERM or SIGINT; the exit status. For a main thread.

    Raises:
        ConfigurationError: There is no broker to consume from, or a setting is wrong.
    """
    log.configure(settings.log_level)
    stopping, deadline = threading.Event(), StopDeadline()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        deadline.begin(stopping.set)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    consume(settings, stopping)
    ignore_signals()
    return 0


def consume(settings: Settings, stopping: threading.Event) -> None:
    """Consume upstream messages until ``stopping`` is set; within 10 s of that.

    Raises:
        ConfigurationError: There is no broker to consume from, or a setting is wrong.
    """
    if not settings.has_broker:
        raise ConfigurationError(
            "the AMQP intake needs a RabbitMQ: set WAYBILL_BROKER_URL, or start with ./deploy/up --full"
        )
    container = Container(settings, role="consumer")
    container.check_schema()
    callers = Callers(
        container.database,
        container.users,
        container.tokens,
        container.standings,
        settings.amqp_principals,
    )
    desk = Desk(callers, container.registry, container.key("idempotency"))
    announcer = Announcer(make_app(settings))
    clock = DatabaseClock(container.database)
    reply_queues = ReplyQueues(settings.amqp_reply_queues)
    loop = IntakeLoop(
        desk=desk,
        intake=container.intake,
        capacity=container.capacity,
        announcer=announcer,
        open_link=lambda: _open_link(
            settings.broker_url, "", PREFETCH, (INTAKE, EXPIRED_INTAKE), clock, reply_queues=reply_queues
        ),
        publisher=Publisher(lambda: _open_for_publishing(settings.broker_url)),
        stopping=stopping,
        log=_log,
    )
    collector = DeadMessageCollector(
        container.database,
        DeadMessages(),
        container.ledger,
        lambda: _open_link(settings.broker_url, "-dead-messages", COLLECTED_AT_ONCE, (DEAD_MESSAGES,), clock),
        stopping,
    )
    collecting = threading.Thread(target=collector.run, name="dead-messages", daemon=True)
    collecting.start()
    try:
        loop.run()
    finally:
        collecting.join(timeout=5)
        announcer.close()
        container.close()


def _open_link(
    url: str,
    purpose: str,
    prefetch: int,
    queues: Sequence[str],
    clock: DatabaseClock,
    reply_queues: ReplyQueues = ANY_QUEUE,
) -> Link:
    link = Link(
        connect(url, f"waybill-consumer{purpose}-{os.getpid()}"),
        prefetch=prefetch,
        queues=queues,
        reply_queues=reply_queues,
        clock=clock.now,
    )
    try:
        link.open()
    except Exception:
        link.close()
        raise
    return link


def _open_for_publishing(url: str) -> Connection:
    """A connection whose dead-letter queue exists, also after the broker was wiped."""
    connection = connect(url, f"waybill-consumer-replies-{os.getpid()}")
    try:
        declare(connection)
    except Exception:
        end(connection)
        raise
    return connection
