"""Whether the ledger has room for more work: read now and then, told at no cost. Knows no door.

Two high-water marks: how many jobs are open, and how long the oldest has been queued. Not counted
as old is what waits behind a retry in its lane: that is one instance's trouble, not the platform's.
Jobs of high priority have a reserve beyond the first mark, and an age of their own.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from math import ceil

from models.backlog import Backlog, read_backlog
from models.database import Database
from models.errors import Transient, Unavailable
from models.job import Priority

RESERVE = 0.1
"""Of the open jobs, what is kept beyond the mark for high priority."""

UNKNOWN_SECONDS = 30
"""When to come back where nothing drains."""

LONGEST_SECONDS = 600
_LOW_WATER = 0.95
_SHARE_OF_TIME = 20
_SHORTEST_REST_SECONDS, _LONGEST_REST_SECONDS = 1.0, 30.0
_WEIGHT = 0.3


@dataclass(slots=True)
class Capacity:
    """Tells whether one more job may come in.

    Args:
        database: Where the ledger is.
        max_open_jobs: The first mark; 0 for none.
        max_open_age: The second; zero for none.
        now: Monotonic seconds.
    """

    database: Database
    max_open_jobs: int
    max_open_age: timedelta
    now: Callable[[], float] = time.monotonic
    rest_seconds: float = _SHORTEST_REST_SECONDS
    """How long to rest until the next reading: a twentieth of the database's time at most goes into them."""
    drained_per_second: float = 0.0
    _backlog: Backlog | None = field(default=None, init=False)
    _admitted: int = field(default=0, init=False)

    def read(self) -> None:
        """Look at the ledger. What cannot be read is not in anybody's way."""
        began = self.now()
        before = self._backlog
        try:
            with self.database.snapshot() as connection:
                found = read_backlog(connection, before.mark if before is not None else None)
        except Transient:
            self._backlog = None
            return
        if before is not None and found.read_at > before.read_at:
            rate = found.finished / (found.read_at - before.read_at)
            self.drained_per_second += _WEIGHT * (rate - self.drained_per_second)
        self._backlog, self._admitted = found, 0
        rest = (self.now() - began) * _SHARE_OF_TIME
        self.rest_seconds = min(max(rest, _SHORTEST_REST_SECONDS), _LONGEST_REST_SECONDS)

    def admit(self, priority: Priority, more: int = 1) -> None:
        """Count ``more`` jobs in, as long as there is room for one.

        Raises:
            Unavailable: There is no room; ``retry_after`` says when there should be.
        """
        backlog = self._backlog
        if backlog is None:
            return
        jobs = sum(backlog.jobs.values()) + self._admitted
        mark = self.max_open_jobs
        if mark and jobs >= (ceil(mark * (1 + RESERVE)) if priority is Priority.HIGH else mark):
            raise self._full("Too many jobs are open", jobs - mark * _LOW_WATER)
        longest = self.max_open_age.total_seconds()
        age = backlog.ages.get(priority, 0.0)
        if longest and age > longest:
            raise self._full("Jobs wait too long already", backlog.jobs[priority] * (1 - longest / age))
        self._admitted += more

    def count(self, more: int) -> None:
        """Count in what came along with one that was admitted."""
        self._admitted += more

    def _full(self, message: str, too_many: float) -> Unavailable:
        """A refusal until ``too_many`` jobs have drained."""
        rate = self.drained_per_second
        seconds = ceil(too_many / rate) if rate > 0 else UNKNOWN_SECONDS
        return Unavailable(message, retry_after=min(max(seconds, 1), LONGEST_SECONDS))
