"""The gate that refuses new work while the ledger is full. Reading and cancelling always pass."""

import asyncio
import logging
from contextlib import suppress

from api_shim.web.http import Request
from api_shim.web.router import Limit, Route
from api_shim.web.threads import Threads
from models.capacity import Capacity
from models.errors import Unavailable
from models.job import Priority

_log = logging.getLogger("waybill.capacity")
_TAKES_JOBS_IN = frozenset({Limit.WRITE, Limit.DELETE, Limit.BULK})
_PRIORITIES = {priority.encode(): priority for priority in Priority}


class BackPressure:
    """Asks the capacity of every request that brings a job, and has it read in the background.

    Args:
        capacity: Knows whether there is room.
        threads: Where it is read.
    """

    def __init__(self, capacity: Capacity, threads: Threads) -> None:
        self._capacity = capacity
        self._threads = threads
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, request: Request, route: Route) -> None:
        """Let the request pass.

        Raises:
            Unavailable: The ledger is full.
        """
        if route.limit in _TAKES_JOBS_IN:
            given = request.headers.get(b"waybill-priority", b"")
            self._capacity.admit(_PRIORITIES.get(given, Priority.NORMAL))

    async def start(self) -> None:
        """Begin to read."""
        self._task = asyncio.create_task(self._read(), name="capacity")

    async def close(self) -> None:
        """Read no more."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _read(self) -> None:
        while True:
            try:
                await self._threads.call(self._capacity.read)
            except Unavailable:  # the threads have too much to do: the next time, then
                pass
            except Exception:
                _log.exception("the backlog cannot be read")
            await asyncio.sleep(self._capacity.rest_seconds)
