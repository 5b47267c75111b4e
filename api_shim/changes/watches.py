"""Following single jobs: every transition of each, once and in order, for however many follow it."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

from sqlalchemy import Connection

from models.job import Job
from models.job_history import JobHistory

_MOST_STEPS_WAITING = 64
_READ_AT_ONCE = 5_000


class Watch:
    """One follower of one job.

    Attributes:
        seen: Sequence of the last transition that it was given.
    """

    __slots__ = ("_future", "_is_over", "_steps", "job_id", "seen")

    def __init__(self, job_id: UUID, seen: int) -> None:
        self.job_id = job_id
        self.seen = seen
        self._steps: list[Job] = []
        self._future: asyncio.Future[None] | None = None
        self._is_over = False

    async def next(self, seconds: float) -> list[Job]:
        """What happened since last asked; empty after ``seconds`` of nothing, or when the process stops."""
        if not self._steps and not self._is_over and seconds > 0:
            self._future = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(seconds):
                    await self._future
            except TimeoutError:
                pass
            finally:
                self._future = None
        steps, self._steps = self._steps, []
        return steps

    def offer(self, steps: list[Job]) -> None:
        """Take what is new to it. A slow follower takes no more than it can hold, and is offered it again."""
        for step in steps:
            if step.sequence > self.seen and len(self._steps) < _MOST_STEPS_WAITING:
                self._steps.append(step)
                self.seen = step.sequence
        if self._steps:
            self._wake()

    def end(self) -> None:
        """Send the follower home."""
        self._is_over = True
        self._wake()

    def _wake(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)


class Watches:
    """Everybody who follows a job in this process; a :class:`~api_shim.changes.listener.Reader`.

    Args:
        history: Reads the transitions.
    """

    def __init__(self, history: JobHistory) -> None:
        self._history = history
        self._by_job: dict[UUID, set[Watch]] = {}
        self._fresh: set[Watch] = set()
        self._count = 0
        self._lock = threading.Lock()
        self._is_closed = False
        self.on_arrival: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return self._count

    @property
    def is_closed(self) -> bool:
        """Whether following has come to its end, because the process stops."""
        return self._is_closed

    @contextmanager
    def following(self, job_id: UUID, seen: int) -> Iterator[Watch]:
        """Follow a job from after the sequence ``seen``: what happened since comes at once."""
        watch = Watch(job_id, seen)
        with self._lock:
            self._by_job.setdefault(job_id, set()).add(watch)
            self._fresh.add(watch)
            self._count += 1
        if self._is_closed:
            watch.end()
        else:
            self.on_arrival()
        try:
            yield watch
        finally:
            with self._lock:
                self._count -= 1
                self._fresh.discard(watch)
                watches = self._by_job[job_id]
                watches.discard(watch)
                if not watches:
                    del self._by_job[job_id]

    def end(self) -> None:
        """Send everybody home; call it on the event loop when the process stops."""
        self._is_closed = True
        with self._lock:
            everybody = [watch for watches in self._by_job.values() for watch in watches]
        for watch in everybody:
            watch.end()

    # ---- as a reader ---------------------------------------------------------------------

    @property
    def is_wanted(self) -> bool:
        """Whether anybody follows anything."""
        return self._count > 0

    @property
    def is_hurried(self) -> bool:
        """Never: a notification tells of every change that is waited for."""
        return False

    def read(self, connection: Connection, *, everything: bool) -> Callable[[], None] | None:
        """Read what is new of the jobs that are followed, whoever follows them, in one query."""
        with self._lock:
            if everything:
                seen = {job_id: min(one.seen for one in some) for job_id, some in self._by_job.items()}
            else:
                seen = {watch.job_id: watch.seen for watch in self._fresh}
                for watch in self._fresh:
                    seen[watch.job_id] = min(seen[watch.job_id], watch.seen)
            self._fresh.clear()
        found: dict[UUID, list[Job]] = {}
        wanted = list(seen.items())
        for start in range(0, len(wanted), _READ_AT_ONCE):
            found |= self._history.since(connection, dict(wanted[start : start + _READ_AT_ONCE]))
        return (lambda: self._hand_out(seen, found)) if found else None

    def _hand_out(self, since: dict[UUID, int], found: dict[UUID, list[Job]]) -> None:
        for job_id, steps in found.items():
            for watch in tuple(self._by_job.get(job_id, ())):
                # Who has seen less came after this reading, which lacks what they miss: theirs is the next.
                if watch.seen >= since[job_id]:
                    watch.offer(steps)
