"""Announcing: tells Celery which jobs and deliveries wait, off everybody's critical path.

An announcement is a wake-up call, not the record: when it is lost, the sweep repeats it.
"""

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from queue import SimpleQueue
from uuid import UUID

from celery import Celery

from models import failpoints, metrics
from models.errors import BrokerUnavailable
from models.failpoints import Step
from models.job import Priority
from tasks.names import APPLY, DELIVER, DELIVERIES_QUEUE, JOB_QUEUES
from tasks.publisher import Publisher

CHUNK = 200
"""Ids in one message, at most."""

PAUSE_SECONDS = 1.0
"""While the broker is away, announcements are dropped for so long before it is tried again."""

_log = logging.getLogger("waybill.announcer")
_Route = tuple[str, str]
"""Task and queue."""


class Announcer:
    """Publishes ids from a thread of its own, as many in one message as have gathered.

    Args:
        app: The Celery application whose broker is told.
    """

    def __init__(self, app: Celery) -> None:
        self._publisher = Publisher(app)
        self._waiting: SimpleQueue[tuple[_Route, list[UUID], float] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._paused_until = 0.0

    def jobs(self, accepted: Mapping[Priority, Iterable[UUID]]) -> None:
        """Announce jobs by priority. Returns at once and never raises."""
        for priority, ids in accepted.items():
            self._put((APPLY, JOB_QUEUES[priority]), list(ids))

    def deliveries(self, ids: Iterable[UUID]) -> None:
        """Announce deliveries. Returns at once and never raises."""
        self._put((DELIVER, DELIVERIES_QUEUE), list(ids))

    def close(self) -> None:
        """Publish what waits, then stop."""
        if self._thread is not None and self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join(timeout=5)

    def _put(self, route: _Route, ids: list[UUID]) -> None:
        if not ids:
            return
        self._waiting.put((route, ids, time.perf_counter()))
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="announcer", daemon=True)
                    self._thread.start()

    def _run(self) -> None:
        is_stopping = False
        while not is_stopping:
            batch = [self._waiting.get()]
            while not self._waiting.empty():
                batch.append(self._waiting.get())
            is_stopping = None in batch
            gathered: dict[_Route, list[UUID]] = {}
            handed_over = [item[2] for item in batch if item is not None]
            for item in batch:
                if item is not None:
                    gathered.setdefault(item[0], []).extend(item[1])
            self._publish(gathered)
            for moment in handed_over:
                metrics.ANNOUNCE_SECONDS.observe(time.perf_counter() - moment)
        self._publisher.close()

    def _publish(self, gathered: Mapping[_Route, list[UUID]]) -> None:
        """Publish, or leave it to the sweep: while the broker is away nothing is kept here."""
        if time.monotonic() < self._paused_until:
            return
        try:
            for (task, queue), ids in gathered.items():
                step = Step.ANNOUNCE_JOBS if task == APPLY else Step.ANNOUNCE_DELIVERIES
                for start in range(0, len(ids), CHUNK):
                    failpoints.before(step)
                    self._publisher.task(task, queue, ids[start : start + CHUNK])
                    failpoints.after(step)
        except BrokerUnavailable as error:
            self._paused_until = time.monotonic() + PAUSE_SECONDS
            _log.warning("announcement failed, the sweep will repeat it", extra={"reason": str(error)})
        except Exception:
            _log.exception("announcement failed, the sweep will repeat it")
