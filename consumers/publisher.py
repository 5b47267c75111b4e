"""Publishing what the intake answers: dead letters confirmed, replies at best effort. Knows no jobs.

It has a connection of its own, apart from the consuming one: the broker may block a publisher for
want of memory, and reading confirms must not take in further messages.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amqp.basic_message import Message
from kombu import Connection

from models.errors import BrokerUnavailable

CONFIRM_TIMEOUT_SECONDS = 5.0
_FAREWELL_SECONDS = 1.0

GLANCE_SECONDS = 0.001
"""Long enough to see what has arrived. Not zero: py-amqp then spins until something does."""

Wire = Any
"""The ``amqp.Connection`` inside a kombu connection. Asked for a lost one, kombu silently makes another,
without our channels: so we keep hold of the one we opened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A message to publish.

    Attributes:
        properties: AMQP properties as py-amqp names them (headers are ``application_headers``).
    """

    exchange: str
    routing_key: str
    body: bytes
    properties: Mapping[str, Any]


class Publisher:
    """Publishes over a connection that it opens when it is needed. For one thread.

    Args:
        connect: Opens a connection.
    """

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self._connect = connect
        self._connection: Connection | None = None
        self._wire: Wire = None
        self._confirming: Any = None
        self._plain: Any = None
        self._sent = 0
        self._unconfirmed: set[int] = set()
        self._trouble: str | None = None

    def confirmed(self, messages: Sequence[Outgoing]) -> None:
        """Publish ``messages`` and return once the broker has every one of them in a queue.

        Raises:
            BrokerUnavailable: It has not, or has not said so in time. Some may have arrived.
        """
        try:
            self._open()
            self._trouble = None
            for message in messages:
                self._sent += 1
                self._unconfirmed.add(self._sent)
                self._publish(self._confirming, message, mandatory=True)
            self._await_confirms()
        except Exception as error:
            self.close()
            raise BrokerUnavailable(f"{type(error).__name__}: {error}") from error
        if self._trouble:
            self.close()
            raise BrokerUnavailable(self._trouble)

    def best_effort(self, messages: Sequence[Outgoing]) -> bool:
        """Publish ``messages``, unconfirmed; whether they were handed over. Never raises."""
        try:
            self._open()
            for message in messages:
                self._publish(self._plain, message, mandatory=False)
        except Exception:
            self.close()
            return False
        return True

    def keep_alive(self) -> None:
        """Exchange heartbeats. Never raises: a lost connection is opened anew when it is needed."""
        if self._connection is None:
            return
        try:
            keep_alive(self._wire)
        except Exception:
            self.close()

    def close(self) -> None:
        """Let go of the connection."""
        connection, self._connection = self._connection, None
        self._wire = self._confirming = self._plain = None
        if connection is not None:
            end(connection)

    def _open(self) -> None:
        if self._connection is not None:
            return
        self._connection = self._connect()
        self._wire = self._connection.connection
        self._confirming = self._wire.channel()
        self._confirming.confirm_select()
        self._confirming.events["basic_ack"].add(self._on_ack)
        self._confirming.events["basic_nack"].add(self._on_nack)
        self._confirming.events["basic_return"].add(self._on_return)
        self._plain = self._wire.channel()
        self._sent, self._unconfirmed = 0, set()

    @staticmethod
    def _publish(channel: Any, message: Outgoing, *, mandatory: bool) -> None:
        content = Message(message.body, **message.properties)
        channel.basic_publish(
            content, exchange=message.exchange, routing_key=message.routing_key, mandatory=mandatory
        )

    def _await_confirms(self) -> None:
        deadline = time.monotonic() + CONFIRM_TIMEOUT_SECONDS
        while self._unconfirmed:
            self._wire.drain_events(timeout=max(0.01, deadline - time.monotonic()))

    def _on_ack(self, delivery_tag: int, multiple: bool) -> None:
        self._settle(delivery_tag, multiple)

    def _on_nack(self, delivery_tag: int, multiple: bool) -> None:
        self._trouble = "the broker would not take a message"
        self._settle(delivery_tag, multiple)

    def _on_return(self, _error: Exception, exchange: str, _routing_key: str, _message: Message) -> None:
        self._trouble = f"no queue is bound to the exchange {exchange}"

    def _settle(self, delivery_tag: int, multiple: bool) -> None:
        if multiple:
            self._unconfirmed = {tag for tag in self._unconfirmed if tag > delivery_tag}
        else:
            self._unconfirmed.discard(delivery_tag)


def keep_alive(wire: Wire) -> None:
    """Take in what has arrived and exchange heartbeats.

    Raises:
        Exception: The connection is lost; py-amqp has many ways to say so.
    """
    try:
        while True:
            wire.drain_events(timeout=GLANCE_SECONDS)
    except TimeoutError as error:
        if error.errno is not None:
            raise
    wire.heartbeat_tick()


def end(connection: Connection) -> None:
    """Close a connection that may be broken; a broker that does not answer is not waited for long."""
    try:
        if connection.connected:
            connection.connection.sock.settimeout(_FAREWELL_SECONDS)
        connection.release()
    except Exception:
        connection.collect()
