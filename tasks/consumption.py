"""Whether a worker still consumes its queues: what the broker, or Celery, may forget to tell it."""

import time
from typing import Any

from amqp.exceptions import ConsumerCancelled

from tasks.topology import SILENCE_SECONDS, forgets_consumers, server_properties


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

        Raises:
            ConsumerCancelled: It has, and Celery did not hear it.
            Exception: The connection is lost.
        """
        for tag in self.consumer._active_tags.values():
            if tag not in self.consumer.channel.callbacks:
                raise ConsumerCancelled(f"the broker ended consumer {tag}")
        if not self._is_forgotten_at_times:
            return
        silent_since = time.monotonic() - SILENCE_SECONDS
        for queue in filter(self.consumer.consuming_from, self.consumer.queues):
            if self._heard_at.setdefault(queue.name, time.monotonic()) < silent_since:
                self.consumer.cancel_by_queue(queue)
                self.consumer.add_queue(queue)
                self.consumer.consume()
                self.heard(queue.name)
