"""Waiting for a job's outcome or next change (``Prefer: wait``, long-polls), and for any change at all."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from uuid import UUID

from sqlalchemy import Connection

from api_shim.changes.watches import Watches
from models.job import Job

MAX_WAITERS = 20_000
_ANY_CHANGE_SECONDS = 1.0

Read = Callable[[UUID], Awaitable[Job | None]]


class Waiters:
    """Requests that wait.

    Args:
        watches: Follow the jobs.
        any_change: Tells that anything changed.
        read: Reads one job on the event loop, together with everybody else who reads just now.
    """

    def __init__(self, watches: Watches, any_change: "AnyChange", read: Read) -> None:
        self._watches = watches
        self._any_change = any_change
        self._read = read

    async def wait(self, job: Job, seconds: float, *, after: int | None = None) -> Job:
        """``job`` as it stands once it is final, or after ``seconds``, or when this process stops.

        Args:
            job: As it was last seen.
            seconds: How long, at most.
            after: Given: come back at any change of it.

        Raises:
            DatabaseUnavailable: It did not come in time, and cannot be read.
        """
        if self._is_vain(job, seconds):
            return job
        last, is_it = await self._follow(job, seconds, is_any_enough=after is not None)
        return last if is_it else await self._read(job.id) or last

    async def outcome(self, job: Job, seconds: float) -> Job:
        """``job``, just accepted, once it is final; after ``seconds`` as it was last seen.

        Reads nothing: that it is accepted must be said whatever is away by then.
        """
        if self._is_vain(job, seconds):
            return job
        last, _ = await self._follow(job, seconds)
        return last

    async def outcomes(self, jobs: Iterable[Job], seconds: float) -> dict[UUID, Job]:
        """All of ``jobs`` once every one is final; after ``seconds`` as they were last seen."""
        standing = await asyncio.gather(*(self.outcome(job, seconds) for job in jobs))
        return {job.id: job for job in standing}

    async def next_change(self, seconds: float) -> None:
        """Come back when any job changed, or after ``seconds``, or a second at most."""
        if not self.is_closed and seconds > 0:
            await self._any_change.wait(min(seconds, _ANY_CHANGE_SECONDS))

    def _is_vain(self, job: Job, seconds: float) -> bool:
        return job.is_done or seconds <= 0 or self.is_closed or len(self._watches) >= MAX_WAITERS

    async def _follow(self, job: Job, seconds: float, *, is_any_enough: bool = False) -> tuple[Job, bool]:
        """The last that came, and whether it is what was waited for."""
        deadline = time.monotonic() + seconds
        with self._watches.following(job.id, job.sequence) as watch:
            while (left := deadline - time.monotonic()) > 0 and not self.is_closed:
                if steps := await watch.next(left):
                    job = steps[-1]
                    if job.is_done or is_any_enough:
                        return job, True
        return job, False

    @property
    def is_closed(self) -> bool:
        """Whether waiting has come to its end, because the process stops."""
        return self._watches.is_closed


class AnyChange:
    """Those who wait for any change; a :class:`~api_shim.changes.listener.Reader` that reads nothing."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()
        self.on_arrival: Callable[[], None] = lambda: None

    async def wait(self, seconds: float) -> None:
        """Come back when anything changed, or after ``seconds``."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        self.on_arrival()
        try:
            async with asyncio.timeout(seconds):
                await future
        except TimeoutError:
            return
        finally:
            self._waiting.discard(future)

    def wake(self) -> None:
        """Send everybody back; call it on the event loop."""
        for future in tuple(self._waiting):
            if not future.done():
                future.set_result(None)

    @property
    def is_wanted(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiting)

    @property
    def is_hurried(self) -> bool:
        """Never: a notification tells of every change that is waited for."""
        return False

    def read(self, connection: Connection, *, everything: bool) -> Callable[[], None] | None:
        """Nothing is read: that something changed is all they want to know."""
        return self.wake if everything else None
