"""The sweep: a feeder that announces what is due, so that queues are full but never flooded.

It rescues jobs whose announcement was lost, wakes scheduled ones, repeats retries when their time
comes, and refills a broker that was wiped. While the broker is away it has callbacks sent without it.
It goes on with what callback endpoints missed while they were disabled, where a recovery has begun it.
Every worker process runs one; they share the work.
"""

import logging
import threading
import time
from datetime import timedelta
from uuid import UUID

from celery import Celery

from models import failpoints, metrics
from models.database import Database
from models.deliveries.missed_outcomes import MissedOutcomes
from models.deliveries.outbox import Outbox
from models.errors import BrokerUnavailable, Contention, Transient
from models.failpoints import Step
from models.job import JobState, Priority
from models.ledger import Ledger
from tasks.announcer import CHUNK
from tasks.direct_delivery import DirectDelivery
from tasks.names import APPLY, DELIVER, DELIVERIES_QUEUE, JOB_QUEUES
from tasks.publisher import Publisher

PLATE = 30
"""Messages in a queue that is full enough."""

PERIOD = timedelta(seconds=1)
HUNGRY_PERIOD = timedelta(milliseconds=50)
"""How soon to look again after something was announced: there may be more."""

MAKE_UP_REST = timedelta(minutes=1)
"""How long what endpoints missed rests after it could not be looked up in time."""

_log = logging.getLogger("waybill.sweeper")


class Sweeper:
    """Sweeps until stopped, in a thread of its own.

    Args:
        database: One of this process's own.
        ledger: Knows which jobs are due.
        outbox: Knows which deliveries are due.
        app: The Celery application whose queues are fed.
        direct: Sends callbacks while the broker is away; None: they wait for it.
    """

    def __init__(
        self,
        database: Database,
        ledger: Ledger,
        outbox: Outbox,
        app: Celery,
        direct: DirectDelivery | None = None,
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._outbox = outbox
        self._missed_outcomes = MissedOutcomes(database)
        self._make_up_at = 0.0
        self._direct = direct
        self._publisher = Publisher(app)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self.run, name="sweeper", daemon=True)

    def start(self) -> None:
        """Sweep in the background."""
        self._thread.start()

    def begin_to_stop(self) -> None:
        """Let the sweep under way be the last one; returns at once."""
        self._stopping.set()

    def stop(self) -> None:
        """Finish the sweep under way, then stop."""
        self.begin_to_stop()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        if self._direct is not None:
            self._direct.close()

    def run(self) -> None:
        """Sweep until stopped; faults are logged once each time they begin."""
        is_troubled = False
        while not self._stopping.is_set():
            announced = 0
            try:
                announced = self.sweep()
                is_troubled = False
            except Transient as error:
                if not is_troubled:
                    _log.warning("sweep waits", extra={"reason": str(error)})
                is_troubled = True
            except Exception:
                _log.exception("sweep failed")
            period = HUNGRY_PERIOD if announced else PERIOD
            self._stopping.wait(period.total_seconds())
        self._publisher.close()

    def sweep(self) -> int:
        """Sweep once; how many jobs were announced.

        Raises:
            DatabaseUnavailable: Nothing was done.
            BrokerUnavailable: What was claimed is announced again later.
        """
        try:
            return self._sweep()
        except BrokerUnavailable:
            if self._direct is not None:
                self._direct.deliver()
            raise
        finally:
            self._make_up()

    def _sweep(self) -> int:
        with self._database.transaction(Step.WAKE) as connection:
            expired, ends = self._ledger.expire(connection, CHUNK)
            self._ledger.wake_scheduled(connection, PLATE * CHUNK)
        metrics.JOBS_FINISHED[JobState.EXPIRED].inc(expired)
        self._announce(DELIVER, DELIVERIES_QUEUE, ends)
        announced = 0
        for priority in Priority:
            queue = JOB_QUEUES[priority]
            room = PLATE - self._publisher.depth(queue)
            if room > 0:
                with self._database.transaction(Step.CLAIM_JOBS) as connection:
                    due = self._ledger.due(connection, priority, room * CHUNK)
                announced += self._announce(APPLY, queue, due)
        room = PLATE - self._publisher.depth(DELIVERIES_QUEUE)
        if room > 0:
            with self._database.transaction(Step.CLAIM_DELIVERIES) as connection:
                waiting = self._outbox.due(connection, room * CHUNK)
            self._announce(DELIVER, DELIVERIES_QUEUE, waiting)
        return announced

    def _make_up(self) -> None:
        """Go on with what endpoints missed, mostly nothing; jobs do not wait for it at each sweep."""
        if time.monotonic() < self._make_up_at:
            return
        try:
            rest = timedelta(0) if self._missed_outcomes.make_up() else PERIOD
        except Contention as error:
            _log.warning("what callback endpoints missed waits", extra={"reason": str(error)})
            rest = MAKE_UP_REST
        self._make_up_at = time.monotonic() + rest.total_seconds()

    def _announce(self, task: str, queue: str, ids: list[UUID]) -> int:
        step = Step.REANNOUNCE_JOBS if task == APPLY else Step.REANNOUNCE_DELIVERIES
        for start in range(0, len(ids), CHUNK):
            failpoints.before(step)
            self._publisher.task(task, queue, ids[start : start + CHUNK])
            failpoints.after(step)
        return len(ids)
