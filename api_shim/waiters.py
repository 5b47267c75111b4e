"""Waiting for jobs to change: ``Prefer: wait`` and long-polls, for thousands at the cost of one query.

A request registers first and reads after, so that no change falls in between. One thread of the
process listens for PostgreSQL's NOTIFY, re-reads all waited jobs in one query on each, and once a
second anyway. While nobody waits it does not even listen.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg

from models.database import Database
from models.errors import Transient
from models.job import Job
from models.ledger import CHANNEL, Ledger

_log = logging.getLogger("waybill.waiters")

MAX_WAITERS = 20_000
_READ_AT_ONCE = 2_000
_KEEP_LISTENING = timedelta(seconds=10)

Read = Callable[[UUID], Awaitable[Job | None]]


@dataclass(eq=False, slots=True)
class _Waiter:
    """One request.

    Attributes:
        after: Any other sequence than this wakes it; None where only the outcome does.
    """

    future: "asyncio.Future[Job | None]"
    after: int | None

    def is_served_by(self, job: Job) -> bool:
        return job.is_done or (self.after is not None and job.sequence != self.after)


class Waiters:
    """Who waits for which job.

    Args:
        database: To listen and to re-read.
        ledger: Reads the jobs.
        read: Reads one job on the event loop, together with everybody else who reads just now.
        reread_after: Jobs are re-read at least this often, should a notification be lost.
    """

    def __init__(
        self,
        database: Database,
        ledger: Ledger,
        read: Read,
        *,
        reread_after: timedelta = timedelta(seconds=1),
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._read = read
        self._reread_seconds = reread_after.total_seconds()
        self._waiting: dict[UUID, set[_Waiter]] = {}
        self._changed: set[asyncio.Future[None]] = set()
        self._count = 0
        self._lock = threading.Lock()
        self._somebody_waits = threading.Event()
        self._is_closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    async def wait(self, job: Job, seconds: float, *, after: int | None = None) -> Job:
        """``job`` as it stands once it is final, or after ``seconds``, or when this process stops.

        Args:
            job: As it was last seen.
            seconds: How long, at most.
            after: Come back also when its sequence is another than this.
        """
        if job.is_done or seconds <= 0 or self._is_closed or self._count >= MAX_WAITERS:
            return job
        self._start()
        waiter = _Waiter(asyncio.get_running_loop().create_future(), after)
        with self._lock:
            self._waiting.setdefault(job.id, set()).add(waiter)
            self._count += 1
        self._somebody_waits.set()
        try:
            seen = await self._read(job.id) or job
            if waiter.is_served_by(seen):
                return seen
            async with asyncio.timeout(seconds):
                return await waiter.future or seen
        except TimeoutError:
            return await self._read(job.id) or job
        finally:
            self._forget(job.id, waiter)

    async def wait_all(self, jobs: Iterable[Job], seconds: float) -> dict[UUID, Job]:
        """All of ``jobs`` as they stand once every one is final, or after ``seconds``."""
        deadline = time.monotonic() + seconds
        return {job.id: await self.wait(job, deadline - time.monotonic()) for job in jobs}

    async def next_change(self, seconds: float) -> None:
        """Come back when any job changed, or after ``seconds``."""
        if self._is_closed or seconds <= 0:
            return
        self._start()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._lock:
            self._changed.add(future)
        self._somebody_waits.set()
        try:
            async with asyncio.timeout(min(seconds, self._reread_seconds)):
                await future
        except TimeoutError:
            return
        finally:
            with self._lock:
                self._changed.discard(future)

    @property
    def is_closed(self) -> bool:
        """Whether waiting has come to its end, because the process stops."""
        return self._is_closed

    def end(self) -> None:
        """Send everybody home with what they know; call it on the event loop when the process stops."""
        self._is_closed = True
        self._somebody_waits.set()
        with self._lock:
            waiters = [waiter for waiters in self._waiting.values() for waiter in waiters]
        for waiter in waiters:
            if not waiter.future.done():
                waiter.future.set_result(None)
        self._wake_changed()

    def close(self, timeout_seconds: float = 3) -> None:
        """Stop listening."""
        self._is_closed = True
        self._somebody_waits.set()
        if self._thread is not None:
            self._thread.join(timeout_seconds)

    # ---- the listening thread ----------------------------------------------------------

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._loop = asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._run, name="waiters", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._is_closed:
            self._somebody_waits.wait()
            try:
                self._listen()
            except (Transient, psycopg.Error, OSError) as error:
                _log.warning("lost the notification channel", extra={"reason": str(error)})
                time.sleep(self._reread_seconds)
            except Exception:
                _log.exception("the listener stumbled")
                time.sleep(self._reread_seconds)

    def _listen(self) -> None:
        """Listen and re-read until nobody has waited for a while."""
        connection = self._database.listen(CHANNEL)
        try:
            idle_since = time.monotonic()
            while not self._is_closed:
                self._wake()
                if self._waiting or self._changed:
                    idle_since = time.monotonic()
                elif time.monotonic() - idle_since > _KEEP_LISTENING.total_seconds():
                    self._somebody_waits.clear()
                    if not (self._waiting or self._changed):
                        return
                self._next_notification(connection)
        finally:
            connection.close()

    def _next_notification(self, connection: Any) -> None:
        for _ in connection.notifies(timeout=self._reread_seconds, stop_after=1):
            pass

    def _wake(self) -> None:
        """Re-read what is waited for, in one query, and tell the event loop."""
        with self._lock:
            ids = list(self._waiting)
        jobs: dict[UUID, Job] = {}
        if ids:
            with self._database.snapshot() as connection:
                for start in range(0, len(ids), _READ_AT_ONCE):
                    jobs |= self._ledger.find(connection, ids[start : start + _READ_AT_ONCE])
        if self._loop is not None and (jobs or self._changed):
            self._loop.call_soon_threadsafe(self._serve, jobs)

    # ---- on the event loop -------------------------------------------------------------

    def _serve(self, jobs: dict[UUID, Job]) -> None:
        for job_id, job in jobs.items():
            for waiter in tuple(self._waiting.get(job_id, ())):
                if waiter.is_served_by(job) and not waiter.future.done():
                    waiter.future.set_result(job)
        self._wake_changed()

    def _wake_changed(self) -> None:
        with self._lock:
            changed, self._changed = self._changed, set()
        for future in changed:
            if not future.done():
                future.set_result(None)

    def _forget(self, job_id: UUID, waiter: _Waiter) -> None:
        with self._lock:
            self._count -= 1
            waiters = self._waiting[job_id]
            waiters.discard(waiter)
            if not waiters:
                del self._waiting[job_id]
