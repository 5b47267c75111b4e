"""The ledger's transitions in one order, for those who follow many jobs at once. No sockets.

All followers of a process share one reading: whatever was settled since the last time, of all jobs
that any of them asks for. A subscription joins that reading first, so that nothing falls in between,
and is told its past up to there in pages. Who is too slow loses its place, and is told from where it was.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from uuid import UUID

from sqlalchemy import Connection

from api_shim.web.threads import Threads
from models.database import Database
from models.job import Job
from models.job_history import Horizon, Interest, JobHistory

PAGE = 200
_WINDOW = 50_000
"""Sequences looked through by one query of the past, so that none runs long."""

_FROM_NOW = 2**63 - 1
"""In place of a sequence: nothing of the past."""

MOST_WAITING = 1_000
"""Transitions that one follower may have waiting."""

_MOST_READ_AT_ONCE = 2_000
_PAGES_AT_ONCE = 3


class Subscription:
    """What one follower asked for.

    Args:
        principal_id: Given where every job of that principal is meant.
        jobs: Single jobs.
        after: Tell everything after this sequence; None: begin with the present state of ``jobs``.
    """

    __slots__ = ("after", "jobs", "live_from", "principal_id")

    def __init__(self, principal_id: UUID | None, jobs: frozenset[UUID], after: int | None) -> None:
        self.principal_id = principal_id
        self.jobs = jobs
        self.after = after
        self.live_from: int | None = None

    @property
    def is_told(self) -> bool:
        """Whether its past has been told up to where it joined."""
        return self.live_from is not None and self.after is not None and self.after >= self.live_from

    @property
    def interest(self) -> Interest:
        """For reading."""
        principals = frozenset() if self.principal_id is None else frozenset({self.principal_id})
        return Interest(principals, self.jobs)

    def takes(self, job: Job) -> bool:
        """Whether a transition of the common reading is for it."""
        if self.live_from is None or job.sequence <= max(self.live_from, self.after or 0):
            return False
        return job.id in self.jobs or job.principal_id == self.principal_id


class Follower:
    """One connection's place in the feed. Used on the event loop only.

    Args:
        feed: Where it follows.
    """

    def __init__(self, feed: "Feed") -> None:
        self._feed = feed
        self._waiting: deque[Job] = deque()
        self._wake = asyncio.Event()
        self._given = 0
        self.subscriptions: list[Subscription] = []

    def subscribe(self, principal_id: UUID | None, jobs: frozenset[UUID], after: int | None) -> None:
        """Follow this too. What is followed already goes on as it is, and is not told twice."""
        for other in self.subscriptions:
            jobs -= other.jobs
            if other.principal_id is not None:
                principal_id = None
        if jobs or principal_id is not None:
            if after is None and not jobs:
                after = _FROM_NOW
            self.subscriptions.append(Subscription(principal_id, jobs, after))
            self._wake.set()

    async def next(self) -> list[Job]:
        """The transitions that come next, in order; empty where the process stops."""
        while not self._feed.is_closed:
            untold = next((one for one in self.subscriptions if not one.is_told), None)
            if untold is not None:
                if past := await self._feed.past(self, untold):
                    return past
            elif self._waiting:
                present = list(self._waiting)
                self._waiting.clear()
                self._given = present[-1].sequence
                return present
            else:
                self._wake.clear()
                await self._wake.wait()
        return []

    def offer(self, jobs: list[Job]) -> None:
        """Take what is for it, as far as there is room; else fall back to reading the past."""
        taken = [job for job in jobs if any(one.takes(job) for one in self.subscriptions)]
        if len(self._waiting) + len(taken) > MOST_WAITING:
            for one in self.subscriptions:
                if one.is_told:
                    one.after = max(one.after or 0, self._given)
                one.live_from = None
            self._waiting.clear()
        else:
            self._waiting.extend(taken)
        if taken:
            self._wake.set()

    def end(self) -> None:
        """Send it home."""
        self._wake.set()


class Feed:
    """All followers of a process; a :class:`~api_shim.changes.listener.Reader`.

    Args:
        database: Where the past is read.
        history: Reads the transitions.
        threads: Where the past is read.
    """

    def __init__(self, database: Database, history: JobHistory, threads: Threads) -> None:
        self._database = database
        self._history = history
        self._threads = threads
        self._horizon = Horizon()
        self._pages = asyncio.Semaphore(_PAGES_AT_ONCE)
        self._lock = threading.Lock()
        self._followers: set[Follower] = set()
        self._live: dict[Subscription, Interest] = {}
        self._joining: dict[Subscription, asyncio.Future[None]] = {}
        self._read_up_to = 0
        self._is_behind = False
        self.is_closed = False
        self.on_arrival: Callable[[], None] = lambda: None

    def arrive(self) -> Follower:
        """Somebody new, who follows nothing yet. Let it :meth:`leave`."""
        follower = Follower(self)
        self._followers.add(follower)
        return follower

    def leave(self, follower: Follower) -> None:
        """It is gone."""
        self._followers.discard(follower)
        with self._lock:
            for subscription in follower.subscriptions:
                self._live.pop(subscription, None)
                self._joining.pop(subscription, None)

    def end(self) -> None:
        """Send everybody home; call it on the event loop when the process stops."""
        self.is_closed = True
        with self._lock:
            joining, self._joining = self._joining, {}
        for future in joining.values():
            if not future.done():
                future.set_result(None)
        for follower in self._followers:
            follower.end()

    # ---- the past ------------------------------------------------------------------------

    async def past(self, follower: Follower, subscription: Subscription) -> list[Job]:
        """The next page of what a subscription has not been told; empty: ask again.

        Raises:
            Transient: The database is away or busy.
        """
        if subscription.live_from is None:
            await self._join(subscription)
        until = subscription.live_from
        if until is None or subscription.is_told:  # it fell back again meanwhile, or the process stops
            return []
        async with self._pages:
            if subscription.after is None:
                page = await self._threads.call(self._read_standing, subscription.jobs, until)
                subscription.after = until
            else:
                window = min(until, subscription.after + _WINDOW)
                page = await self._threads.call(
                    self._read_page, subscription.interest, subscription.after, window
                )
                subscription.after = page[-1].sequence if len(page) == PAGE else window
        return page

    async def _join(self, subscription: Subscription) -> None:
        """Take part in the common reading."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._lock:
            self._joining[subscription] = future
        self.on_arrival()
        try:
            await future
        finally:
            with self._lock:
                self._joining.pop(subscription, None)

    def _read_standing(self, jobs: frozenset[UUID], until: int) -> list[Job]:
        with self._database.snapshot() as connection:
            return self._history.standing(connection, jobs, until)

    def _read_page(self, interest: Interest, after: int, until: int) -> list[Job]:
        with self._database.snapshot() as connection:
            return self._history.between(connection, interest, after, until, PAGE)

    # ---- as a reader ---------------------------------------------------------------------

    @property
    def is_wanted(self) -> bool:
        """Whether anybody follows anything."""
        return bool(self._live or self._joining)

    @property
    def is_hurried(self) -> bool:
        """Whether something is visible that is not settled yet, and should be looked at again soon."""
        return self._is_behind and bool(self._live)

    def read(self, connection: Connection, *, everything: bool) -> Callable[[], None] | None:
        """Read what has been settled since the last time, for all followers together."""
        with self._lock:
            joining, self._joining = self._joining, {}
            was_idle = not self._live
            for subscription in joining:
                self._live[subscription] = subscription.interest
            interest = Interest(
                frozenset().union(*(one.principals for one in self._live.values())),
                frozenset().union(*(one.jobs for one in self._live.values())),
            )
        try:
            settled = self._horizon.settled(connection)
            began_at = settled if was_idle else self._read_up_to
            jobs = self._history.between(connection, interest, began_at, settled, _MOST_READ_AT_ONCE)
        except BaseException:
            self._put_back(joining)
            raise
        is_cut = len(jobs) == _MOST_READ_AT_ONCE
        self._read_up_to = jobs[-1].sequence if is_cut else settled
        self._is_behind = is_cut or self._horizon.is_behind
        up_to = self._read_up_to
        return (lambda: self._hand_out(joining, began_at, up_to, jobs)) if joining or jobs else None

    def _put_back(self, joining: dict[Subscription, "asyncio.Future[None]"]) -> None:
        """The reading failed: they join at the next one."""
        with self._lock:
            for subscription, future in joining.items():
                self._live.pop(subscription, None)
                if not future.done():
                    self._joining[subscription] = future

    def _hand_out(
        self, joining: dict[Subscription, "asyncio.Future[None]"], began_at: int, up_to: int, jobs: list[Job]
    ) -> None:
        """Give ``jobs`` to those who followed before; to who joins, all of it up to ``up_to`` is the past."""
        for subscription, future in joining.items():
            if future.done():  # it left meanwhile
                with self._lock:
                    self._live.pop(subscription, None)
            else:
                subscription.live_from = up_to
                if subscription.after == _FROM_NOW:
                    subscription.after = began_at
                future.set_result(None)
        if jobs:
            for follower in tuple(self._followers):
                follower.offer(jobs)
