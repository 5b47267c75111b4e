"""Celery's consumer as we need it: nothing lost, nothing declared in vain. What it consumes: ``topology``."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from celery.worker.consumer import Consumer
from celery.worker.state import maybe_shutdown

from tasks.consumption import Consumption
from tasks.topology import declare_celery_queues
from tasks.watchdog import Watchdog

LONGEST_PAUSE_SECONDS = 3
LASTING_SECONDS = 10
"""A connection that was lost later than this was a good one."""
_FIRST_PAUSE_SECONDS = 0.25

_log = logging.getLogger("waybill.tasks")


class Patience:
    """How long to wait before a connection is made, by how long the last ones lasted.

    Args:
        now: Monotonic seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._made_at = float("-inf")
        self._pause = 0.0

    def pause(self) -> float:
        """Seconds to wait now; the connection is taken to be made after them."""
        if self._now() - self._made_at >= LASTING_SECONDS:
            self._pause = 0.0
        else:
            self._pause = min(max(2 * self._pause, _FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
        self._made_at = self._now() + self._pause
        return self._pause


class PlainConsumer(Consumer):
    """Starts like Celery's own, one step shorter, and gives the broker back what it cannot read.

    Where a queue is a quorum queue, that step declares 28 exchanges and 28 more quorum queues. They serve
    ``eta`` and ``countdown``, which we do not use.

    While the broker is away Celery waits longer and longer between its attempts to connect, up to half a
    minute; here no longer than :data:`LONGEST_PAUSE_SECONDS`.

    Where connections are lost as soon as they are made, Celery makes them anew without a pause; here there is
    one, of the same length at most. RabbitMQ (seen with 3.10) breaks the connection of whoever consumes from
    a queue while its leader is away: four workers made hundreds of connections in half a minute, each with a
    page in the broker's log.

    Queues are declared as ``topology`` does it: Celery would make one again while its deletion is under way.

    Where a queue is deleted, the broker ends our consumer, or forgets it. Celery's loop does not hear the one
    in its first tenth of a second, nobody hears the other: here it is looked for.

    Where its loop is the process's main one, a watchdog ends the process when the loop stands still.

    Celery acknowledges a message that it cannot decode, and it is gone; one that it can decode and not
    make sense of may even end the worker. Here both go to ``waybill.jobs.dead``, to be collected.
    """

    class Blueprint(Consumer.Blueprint):  # type: ignore[misc, valid-type] # the stubs call it a variable
        """The steps of its start."""

        default_steps = [
            step for step in Consumer.Blueprint.default_steps if not step.endswith(":DelayedDelivery")
        ]

    task_consumer: Any
    _consumption: Consumption | None = None
    _patience: Patience | None = None
    _beat: Callable[[], None] = staticmethod(lambda: None)

    def start(self) -> None:
        """Celery's own, watched."""
        if threading.current_thread() is not threading.main_thread():
            super().start()
            return
        with Watchdog() as watchdog:
            self._beat = watchdog.beat
            super().start()

    def register_with_event_loop(self, hub: Any) -> None:
        """Let the loop of a connection beat; of a pool of processes."""
        super().register_with_event_loop(hub)
        hub.call_repeatedly(1, self._beat)
        if self.app.conf.task_queues:
            hub.call_repeatedly(1, self._look)

    def perform_pending_operations(self) -> None:
        """Celery's own, which the loop of a pool of threads does in each round."""
        self._beat()
        super().perform_pending_operations()

    def connect(self) -> Any:
        """Celery's own, not again at once where the last connection did not last."""
        self._patience = self._patience or Patience()
        until = time.monotonic() + self._patience.pause()
        while (left := until - time.monotonic()) > 0:
            self._beat()
            maybe_shutdown()
            time.sleep(min(left, 0.2))
        return super().connect()

    def update_strategies(self) -> None:
        """Celery's own, the first that it does of what it consumes: the queues are declared before."""
        if self.app.conf.task_queues and self.connection is not None:
            declare_celery_queues(self.connection)
        super().update_strategies()

    def ensure_connected(self, conn: Any) -> Any:
        """Celery's own, with a bound to its pauses, for which it has no setting."""
        ensure = conn.ensure_connection

        def ensure_connection(
            *arguments: Any, callback: Callable[[], None] = lambda: None, **options: Any
        ) -> Any:
            def on_pause() -> None:  # each second of one
                self._beat()
                callback()

            return ensure(*arguments, **options, callback=on_pause, interval_max=LONGEST_PAUSE_SECONDS)

        conn.ensure_connection = ensure_connection
        return super().ensure_connected(conn)

    def _look(self) -> None:
        """See that we still consume; once a second.

        Raises:
            ConsumerCancelled: A queue was deleted.
        """
        if self._consumption is None or self._consumption.consumer is not self.task_consumer:
            self._consumption = Consumption(self.task_consumer)
        self._consumption.look()

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Let the broker dead-letter what cannot be decoded."""
        self._give_back(message, exc)

    def create_task_handler(self, *arguments: Any) -> Callable[[Any], None]:
        """Celery's handler, which no message can make raise."""
        handle = super().create_task_handler(*arguments)

        def on_task_received(message: Any) -> None:
            if self._consumption is not None:
                self._consumption.heard(str(message.delivery_info.get("routing_key")))
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
