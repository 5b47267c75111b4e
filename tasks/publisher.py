"""Publishing to RabbitMQ: every message persistent, confirmed, and known to be routed or not.

One publisher has one connection and belongs to one thread. After any fault the connection is thrown
away: a late confirm can then never be taken for that of the next message.
"""

from contextlib import suppress
from typing import Any
from uuid import UUID

from amqp.exceptions import AMQPError, MessageNacked
from celery import Celery
from kombu import Connection, Producer
from kombu.exceptions import KombuError, OperationalError

from models.errors import BrokerUnavailable, ConfigurationError
from tasks.topology import declare

PATIENCE_SECONDS = 5
_FAREWELL_SECONDS = 0.5
_FAULTS = (AMQPError, KombuError, OperationalError, OSError)


class NotConfirmed(BrokerUnavailable):
    """Sent, and no word of it in time, though the broker answers: a queue of it has no majority."""


class NotTaken(BrokerUnavailable):
    """A queue where it belongs is full and refused it (``basic.nack``). Others may have taken it."""


class Publisher:
    """Publishes tasks and plain messages. Connects, and declares the topology, on first use.

    Args:
        app: The Celery application whose broker it uses.
        patience_seconds: How long the broker may take to answer.
    """

    def __init__(self, app: Celery, *, patience_seconds: int = PATIENCE_SECONDS) -> None:
        self._app = app
        self._patience_seconds = patience_seconds
        self._connection: Connection | None = None
        self._connections = 0
        self._producer: Producer | None = None
        self._channel: Any = None
        self._returned = False

    def task(self, name: str, queue: str, ids: list[UUID]) -> None:
        """Publish one Celery task that takes ``ids``.

        Raises:
            BrokerUnavailable: Not confirmed, or no such queue.
        """
        producer = self._ready()
        self._returned = False
        try:
            self._app.send_task(
                name,
                args=([str(one) for one in ids],),
                queue=queue,
                producer=producer,
                declare=[],  # Celery would declare the queue: it is there, and not everybody may
                mandatory=True,
                confirm_timeout=self._patience_seconds,
                retry=False,
                argsrepr=f"({len(ids)} ids)",
                kwargsrepr="{}",
            )
        except (*_FAULTS, MessageNacked) as error:
            self.close()
            raise BrokerUnavailable(f"{type(error).__name__}: {error}") from error
        if self._returned:
            self.close()
            raise BrokerUnavailable(f"queue {queue} is gone")

    def message(
        self, body: bytes, *, exchange: str, routing_key: str, content_type: str, **properties: Any
    ) -> bool:
        """Publish one plain message.

        Returns:
            Whether any queue took it.

        Raises:
            BrokerUnavailable: Not confirmed.
            NotConfirmed: The same, by a broker that is there.
            NotTaken: Refused by a queue, which is an answer: the connection is kept.
        """
        producer = self._ready()
        self._returned = False
        try:
            producer.publish(
                body,
                exchange=exchange,
                routing_key=routing_key,
                content_type=content_type,
                content_encoding="utf-8",
                delivery_mode=2,
                mandatory=True,
                confirm_timeout=self._patience_seconds,
                retry=False,
                **properties,
            )
        except MessageNacked as error:
            raise NotTaken(f"a queue for {routing_key} is full") from error
        except _FAULTS as error:
            is_silence = isinstance(error, TimeoutError) and error.errno is None  # else the network says it
            is_there = is_silence and self._is_answered()
            self.close()
            if is_there:
                raise NotConfirmed(f"no confirmation within {self._patience_seconds} s") from error
            raise BrokerUnavailable(f"{type(error).__name__}: {error}") from error
        return not self._returned

    def _is_answered(self) -> bool:
        """Whether the broker answers on this connection. One that blocks who publishes does not."""
        try:
            self._channel.connection.channel()  # another one: ours may wait for its queue
        except _FAULTS:
            return False
        return True

    def depth(self, queue: str) -> int:
        """Messages that wait in ``queue``.

        Raises:
            BrokerUnavailable: The broker, or the queue, is away.
        """
        return int(self._passive(queue).message_count)

    def consumers(self, queue: str) -> int:
        """Consumers of ``queue``.

        Raises:
            BrokerUnavailable: The broker, or the queue, is away.
        """
        return int(self._passive(queue).consumer_count)

    def _passive(self, queue: str) -> Any:
        self._ready()
        try:
            return self._channel.queue_declare(queue=queue, passive=True)
        except _FAULTS as error:
            self.close()
            raise BrokerUnavailable(f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Drop the connection; the next call makes a new one. A broker that is silent is not waited for."""
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            with suppress(*_FAULTS, AttributeError):  # on memory:// it has no socket
                if connection.connected:
                    connection.connection.sock.settimeout(_FAREWELL_SECONDS)
            with suppress(*_FAULTS):
                connection.close()

    def _ready(self) -> Producer:
        if self._producer is not None:
            return self._producer
        try:
            urls = self._urls()
            self._connection = self._app.connection_for_write(
                ";".join(urls),
                connect_timeout=min(3, self._patience_seconds),
                transport_options=self._transport_options(),
            )
            # Each once more, and no pause: whoever waits comes again.
            self._connection.ensure_connection(
                max_retries=len(urls), interval_start=0, interval_step=0, timeout=self._patience_seconds
            )
            declare(self._connection)
            self._channel = self._connection.channel()
            self._producer = Producer(self._channel, on_return=self._on_return)
        except _FAULTS as error:
            self.close()
            raise BrokerUnavailable(f"{type(error).__name__}: {error}") from error
        except ConfigurationError as error:  # told in a line at every start; here it is one fault of many
            self.close()
            raise BrokerUnavailable(str(error)) from error
        return self._producer

    def _urls(self) -> list[str]:
        """The broker's nodes, each time from the next on.

        What was wrong with the last connection may be its node, and one that is frozen takes all our patience
        before another is tried.
        """
        urls = self._app.conf.broker_url.split(";")
        first = self._connections % len(urls)
        self._connections += 1
        return [*urls[first:], *urls[:first]]

    def _transport_options(self) -> dict[str, Any]:
        """Time-outs of the socket itself: a broker that is frozen keeps its connections, and says nothing."""
        return {"read_timeout": self._patience_seconds, "write_timeout": self._patience_seconds}

    def _on_return(self, *_returned: Any) -> None:
        self._returned = True
