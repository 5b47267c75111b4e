"""Whether a worker still consumes its queues: what the broker, or Celery, may forget to tell it."""

import time
from typing import Any

from amqp.exceptions import ChannelError, ConsumerCancelled
from celery.worker.state import reserved_requests

from tasks.topology import SILENCE_SECONDS, forgets_consumers, server_properties

ANSWER_SECONDS = 5
"""How long the broker may take to answer; one that is frozen keeps its connections, and says nothing."""


class Consumption:
    """Looks after one consumer of a worker. For the thread that it consumes in.

    Args:
        consumer: Kombu's, consuming from RabbitMQ.
    """

    def __init__(self, consumer: Any) -> None:
        self.consumer = consumer
        self._is_forgotten_at_times = forgets_consumers(server_properties(consumer.connection))
        self._heard_at = {queue.name: time.monotonic() for queue in consumer.queues}

    def heard(self, queue: str) -> None:
        """Something came from ``queue``."""
        self._heard_at[queue] = time.monotonic()

    def look(self) -> None:
        """See that the broker has ended nothing; consume a queue anew that has been silent for long.

        One from which something is at work is not silent, but full: the broker hands over no more.

        Raises:
            ConsumerCancelled: It has, and Celery did not hear it; or it refuses to let us consume anew.
            Exception: The connection is lost.
        """
        for tag in self.consumer._active_tags.values():
            if tag not in self.consumer.channel.callbacks:
                raise ConsumerCancelled(f"the broker ended consumer {tag}")
        if not self._is_forgotten_at_times:
            return
        silent_since = time.monotonic() - SILENCE_SECONDS
        for queue in filter(self.consumer.consuming_from, self.consumer.queues):
            if self._heard_at.setdefault(queue.name, time.monotonic()) >= silent_since:
                continue
            try:
                at_work = {one.delivery_info.get("routing_key") for one in list(reserved_requests)}
            except RuntimeError:  # a thread has just ended one, and the set changed: the next look will tell
                return
            if queue.name not in at_work:
                self._consume_anew(queue)
            self.heard(queue.name)

    def _consume_anew(self, queue: Any) -> None:
        try:
            with self.consumer.channel.connection.transport.having_timeout(ANSWER_SECONDS):
                self.consumer.cancel_by_queue(queue)
                self.consumer.add_queue(queue)
                self.consumer.consume()
        except ChannelError as error:  # Celery's loop goes on after one, without the channel's consumers
            raise ConsumerCancelled(str(error)) from error
