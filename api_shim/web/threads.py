"""A few threads for what blocks and is not worth a batch: lists, cancels, log-ins. Bounded."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from models.errors import Unavailable

PATIENCE_SECONDS = 10.0

P = ParamSpec("P")
R = TypeVar("R")


class Threads:
    """A thread pool that refuses instead of queueing without end.

    Args:
        name: Of its threads.
        threads: Calls at once.
        max_waiting: Calls that may wait for a thread; beyond it callers get 503.
        patience_seconds: How long a call may wait for a thread. One that has waited longer is refused instead
            of done: whoever asked has given up, and doing it would keep the next ones waiting as long.
    """

    def __init__(
        self, name: str, threads: int, *, max_waiting: int, patience_seconds: float = PATIENCE_SECONDS
    ) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._capacity = threads + max_waiting
        self._patience_seconds = patience_seconds
        self._inside = 0

    async def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """``function(...)``, on one of the threads.

        Raises:
            Unavailable: Too many wait already, or this one has waited too long.
        """
        if self._inside >= self._capacity:
            raise Unavailable("Too many requests wait already", retry_after=1)
        self._inside += 1
        try:
            work = partial(function, *args, **kwargs)
            until = time.monotonic() + self._patience_seconds
            return await asyncio.get_running_loop().run_in_executor(self._pool, _do_by, until, work)
        finally:
            self._inside -= 1

    def close(self) -> None:
        """Let what runs come to its end; refuse what waits."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _do_by(until: float, work: Callable[[], R]) -> R:
    if time.monotonic() > until:
        raise Unavailable("The server is busy: this waited too long to be begun", retry_after=2)
    return work()
