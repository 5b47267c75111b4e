"""Announcing: tells Celery which jobs and deliveries wait, off everybody's critical path.

An announcement is a wake-up call, not the record: when it is lost, the sweep repeats it.
"""

import logging
import threading
from collections.abc import Iterable, Mapping
from queue import SimpleQueue
from uuid import UUID

from celery import Celery
from kombu.exceptions import OperationalError

from models.job import Priority
from tasks.names import APPLY, DELIVER, DELIVERIES_QUEUE, JOB_QUEUES

CHUNK = 200
"""Ids in one message, at most."""

_log = logging.getLogger("waybill.announcer")
_STOP = None


class Announcer:
    """Publishes ids from a thread of its own, as many in one message as have gathered.

    Args:
        app: The Celery application whose broker is told.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._waiting: SimpleQueue[tuple[str, str, list[UUID]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def jobs(self, accepted: Mapping[Priority, Iterable[UUID]]) -> None:
        """Announce jobs by priority. Returns at once and never raises."""
        for priority, ids in accepted.items():
            self._put(APPLY, JOB_QUEUES[priority], list(ids))

    def deliveries(self, ids: Iterable[UUID]) -> None:
        """Announce deliveries. Returns at once and never raises."""
        self._put(DELIVER, DELIVERIES_QUEUE, list(ids))

    def close(self) -> None:
        """Publish what waits, then stop."""
        if self._thread is not None and self._thread.is_alive():
            self._waiting.put(_STOP)
            self._thread.join(timeout=5)

    def _put(self, task: str, queue: str, ids: list[UUID]) -> None:
        if not ids:
            return
        self._waiting.put((task, queue, ids))
        if self._thread is None or not self._thread.is_alive():
            with self._starting:
                if self._thread is None or not self._thread.is_alive():
                    self._thread = threading.Thread(target=self._run, name="announcer", daemon=True)
                    self._thread.start()

    def _run(self) -> None:
        while True:
            first = self._waiting.get()
            batch = [first]
            while not self._waiting.empty():
                batch.append(self._waiting.get())
            gathered: dict[tuple[str, str], list[UUID]] = {}
            for item in batch:
                if item is not _STOP:
                    gathered.setdefault(item[:2], []).extend(item[2])
            for (task, queue), ids in gathered.items():
                publish(self._app, task, queue, ids)
            if _STOP in batch:
                return


def publish(app: Celery, task: str, queue: str, ids: list[UUID]) -> int:
    """Publish ``ids`` in messages of at most :data:`CHUNK`, each confirmed by the broker.

    Returns:
        How many ids were confirmed. Never raises for a broker that is away: the sweep goes on.
    """
    sent = 0
    for start in range(0, len(ids), CHUNK):
        chunk = ids[start : start + CHUNK]
        try:
            app.send_task(
                task,
                args=([str(one) for one in chunk],),
                queue=queue,
                mandatory=True,
                confirm_timeout=5,
                retry=False,
                argsrepr=f"({len(chunk)} ids)",
                kwargsrepr="{}",
            )
        except (OperationalError, OSError) as error:
            _log.warning(
                "announcement failed", extra={"queue": queue, "ids": len(ids) - sent, "reason": str(error)}
            )
            return sent
        sent += len(chunk)
    return sent
