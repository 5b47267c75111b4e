"""The pruner: has what is past its retention deleted, now and then, in a thread of its own. No SQL.

Every worker process runs one; whoever comes first does it, the others find that out and come again.
"""

import logging
import random
import threading
from collections import Counter
from collections.abc import Callable
from datetime import timedelta

from models import metrics
from models.errors import Contention, Transient
from models.retention import Retention

PERIOD = timedelta(minutes=1)
"""How long to rest after there was nothing left, give or take a half."""

_log = logging.getLogger("waybill.pruner")


class Pruner:
    """Prunes until stopped, at most half of the time: after each batch it rests as long as that took.

    Args:
        retention: Knows what is past its time.
        period: Between two runs.
        jitter: A number from 0 to 1, so that processes started together part.
    """

    def __init__(
        self,
        retention: Retention,
        *,
        period: timedelta = PERIOD,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._retention = retention
        self._period = period
        self._jitter = jitter
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self.run, name="pruner", daemon=True)

    def start(self) -> None:
        """Prune in the background."""
        self._thread.start()

    def begin_to_stop(self) -> None:
        """Let the batch under way be the last one; returns at once."""
        self._stopping.set()

    def stop(self) -> None:
        """Finish the batch under way, then stop."""
        self.begin_to_stop()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def run(self) -> None:
        """Prune until stopped; faults are logged once each time they begin."""
        is_troubled = False
        while not self._stopping.wait(self._period.total_seconds() * (0.5 + self._jitter())):
            try:
                self.prune()
                is_troubled = False
            except Contention:  # somebody else prunes
                continue
            except Transient as error:
                if not is_troubled:
                    _log.warning("pruning waits", extra={"reason": str(error)})
                is_troubled = True
            except Exception:
                _log.exception("pruning failed")

    def prune(self) -> None:
        """Prune until nothing is left, or until stopped.

        Raises:
            Contention: Another process does.
            DatabaseUnavailable: What was deleted so far is.
        """
        rows: Counter[str] = Counter()
        try:
            for batch in self._retention.batches():
                rows.update(batch.rows)
                for table, count in batch.rows.items():
                    metrics.PRUNED_ROWS.labels(table).inc(count)
                metrics.RETENTION_BEHIND.set(batch.behind.total_seconds())
                if self._stopping.wait(batch.seconds):
                    return
            metrics.RETENTION_LAST_RUN.set_to_current_time()
        finally:
            metrics.RETENTION_BEHIND.set(0)
            if rows.total():
                _log.info("pruned", extra={"rows": dict(+rows)})
