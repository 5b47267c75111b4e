"""Celery's consumer as we need it: nothing lost, nothing declared in vain. What it consumes: ``topology``."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from celery.worker.consumer import Consumer

LONGEST_PAUSE_SECONDS = 3

_log = logging.getLogger("waybill.tasks")


class PlainConsumer(Consumer):
    """Starts like Celery's own, one step shorter, and gives the broker back what it cannot read.

    Where a queue is a quorum queue, that step declares 28 exchanges and 28 more quorum queues. They serve
    ``eta`` and ``countdown``, which we do not use.

    While the broker is away Celery waits longer and longer between its attempts to connect, up to half a
    minute; here no longer than :data:`LONGEST_PAUSE_SECONDS`.

    Celery acknowledges a message that it cannot decode, and it is gone; one that it can decode and not
    make sense of may even end the worker. Here both go to ``waybill.jobs.dead``, to be collected.
    """

    class Blueprint(Consumer.Blueprint):  # type: ignore[misc, valid-type] # the stubs call it a variable
        """The steps of its start."""

        default_steps = [
            step for step in Consumer.Blueprint.default_steps if not step.endswith(":DelayedDelivery")
        ]

    def ensure_connected(self, conn: Any) -> Any:
        """Celery's own, with a bound to its pauses, for which it has no setting."""
        conn.ensure_connection = partial(conn.ensure_connection, interval_max=LONGEST_PAUSE_SECONDS)
        return super().ensure_connected(conn)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Let the broker dead-letter what cannot be decoded."""
        self._give_back(message, exc)

    def create_task_handler(self, *arguments: Any) -> Callable[[Any], None]:
        """Celery's handler, which no message can make raise."""
        handle = super().create_task_handler(*arguments)

        def on_task_received(message: Any) -> None:
            try:
                handle(message)
            except self.connection_errors:  # type: ignore[attr-defined] # the stubs lack it
                raise
            except Exception as error:
                self._give_back(message, error)

        return on_task_received

    def _give_back(self, message: Any, error: Exception) -> None:
        facts = {"reason": type(error).__name__, "contentType": str(message.content_type)[:100]}
        _log.error("message cannot be read, it goes to the dead letters", extra=facts)
        message.reject_log_error(_log, self.connection_errors)  # type: ignore[attr-defined]
