"""The link: one consuming connection to the broker, from which messages are taken in order, undecoded."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from amqp.basic_message import Message
from amqp.exceptions import ConsumerCancelled
from kombu import Connection

from consumers.envelope import Arrival
from consumers.frames import tolerant_frame_handler
from consumers.publisher import GLANCE_SECONDS, Wire, end, keep_alive
from consumers.reply_queues import ANY_QUEUE, ReplyQueues
from tasks.names import EXPIRED_INTAKE, INTAKE
from tasks.topology import SILENCE_SECONDS, declare, forgets_consumers, server_properties

HEARTBEAT_SECONDS = 10
MAX_BYTES_IN_HAND = 32 * 1024 * 1024
"""Beyond this nothing more is read from the socket; what is too large for us may come by the gigabyte."""


def connect(url: str, name: str) -> Connection:
    """Open a connection that survives unreadable messages.

    Args:
        url: ``amqp://…``; several, separated by ``;``, are tried in turn.
        name: Shown by the broker.

    Raises:
        Exception: It cannot be opened; py-amqp has many ways to say so.
    """
    connection = Connection(
        url,
        heartbeat=HEARTBEAT_SECONDS,
        connect_timeout=4,
        transport_options={
            "frame_handler": tolerant_frame_handler,
            "client_properties": {"connection_name": name},
            "read_timeout": 5,  # of an answer: one that is frozen keeps its connections
            "write_timeout": 5,
        },
    )
    try:
        hosts = len(connection.alt)
        connection.ensure_connection(max_retries=max(1, hosts), interval_start=0, interval_step=0)
    except Exception:
        end(connection)
        raise
    return connection


class Link:
    """Consumes a few queues over a connection of its own.

    Not by kombu's consumer: that decompresses a body while it takes the message in.

    Args:
        connection: Open; closed with the link.
        prefetch: Messages that the broker hands over before any is acknowledged.
        queues: What it consumes.
        reply_queues: Those that senders may have answered to.
        clock: The database's time, from which a message's ``expiration`` counts.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        prefetch: int,
        queues: Sequence[str] = (INTAKE, EXPIRED_INTAKE),
        reply_queues: ReplyQueues = ANY_QUEUE,
        clock: Callable[[], datetime],
    ) -> None:
        self._connection = connection
        self._prefetch = prefetch
        self._queues = queues
        self._reply_queues = reply_queues
        self._clock = clock
        self._wire: Wire = None
        self._channel: Any = None
        self._tags: dict[str, str] = {}
        self._heard_at: dict[str, float] = {}
        self._is_forgotten_at_times = False
        self._arrived: deque[Arrival] = deque()
        self._bytes_in_hand = 0
        self._cancelled: str | None = None

    def open(self) -> None:
        """Declare the topology and begin to consume.

        Raises:
            ConfigurationError: The broker has something else under one of our names.
        """
        declare(self._connection)
        self._wire = self._connection.connection
        self._is_forgotten_at_times = forgets_consumers(server_properties(self._connection))
        self._consume()

    def take(self, limit: int, wait_seconds: float) -> list[Arrival]:
        """The messages that have arrived, in their order, at most ``limit``; waits only for the first.

        Raises:
            ConsumerCancelled: A queue was deleted, now or while something else was at work.
            Exception: The link is lost.
        """
        if not self._arrived and self._may_be_forgotten():
            self._consume_anew()
        if not self._arrived:
            self._read(wait_seconds)
        while (
            len(self._arrived) < limit
            and self._bytes_in_hand < MAX_BYTES_IN_HAND
            and self._read(GLANCE_SECONDS)
        ):
            pass
        if self._cancelled is not None:
            raise ConsumerCancelled(f"the broker ended consumer {self._cancelled}")
        self._wire.heartbeat_tick()
        taken = [self._arrived.popleft() for _ in range(min(limit, len(self._arrived)))]
        self._bytes_in_hand -= sum(len(one.body) for one in taken)
        return taken

    def keep_alive(self) -> None:
        """Exchange heartbeats while something else is at work; what arrives meanwhile is kept."""
        if self._bytes_in_hand < MAX_BYTES_IN_HAND:
            keep_alive(self._wire)
        else:
            self._wire.send_heartbeat()

    def acknowledge(self, arrivals: list[Arrival]) -> None:
        """Acknowledge everything up to the last of ``arrivals``: all before it is settled already."""
        self._channel.basic_ack(arrivals[-1].delivery_tag, multiple=True)

    def close(self) -> None:
        """Stop consuming and close; what is not acknowledged goes back to its place in the queue."""
        end(self._connection)

    def _consume(self) -> None:
        self._channel = self._wire.channel()
        self._channel.auto_decode = False
        self._channel.basic_qos(0, self._prefetch, a_global=False)
        for queue in self._queues:
            tag = self._channel.basic_consume(queue, callback=self._on_message, on_cancel=self._on_cancel)
            self._tags[queue], self._heard_at[tag] = tag, time.monotonic()

    def _may_be_forgotten(self) -> bool:
        silent_since = time.monotonic() - SILENCE_SECONDS
        return self._is_forgotten_at_times and min(self._heard_at.values()) < silent_since

    def _consume_anew(self) -> None:
        """Give back what the broker believes us to have, and consume over another channel.

        All that was taken is acknowledged by now.
        """
        self._channel.close()
        self._arrived.clear()
        self._bytes_in_hand = 0
        self._heard_at.clear()
        self._consume()

    def _read(self, wait_seconds: float) -> bool:
        try:
            self._wire.drain_events(timeout=wait_seconds)
        except TimeoutError as error:
            if error.errno is not None:
                raise
            return False
        return True

    def _on_cancel(self, consumer_tag: str) -> None:
        self._cancelled = consumer_tag

    def _on_message(self, message: Message) -> None:
        delivery = message.delivery_info
        properties = message.properties
        body = message.body if isinstance(message.body, bytes) else b""
        arrival = Arrival(
            routing_key=delivery["routing_key"],
            body=body,
            properties=properties,
            headers=properties.get("application_headers") or {},
            arrived_at=self._clock(),
            delivery_tag=delivery["delivery_tag"],
            is_redelivered=bool(delivery["redelivered"]),
            has_expired=delivery["consumer_tag"] == self._tags.get(EXPIRED_INTAKE),
            reply_queues=self._reply_queues,
        )
        self._heard_at[delivery["consumer_tag"]] = time.monotonic()
        self._arrived.append(arrival)
        self._bytes_in_hand += len(body)
