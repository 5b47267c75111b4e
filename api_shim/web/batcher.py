"""Group commit at the edge: requests that wait at the same moment share one call of a blocking function.

The crossing from the event loop to the database and back: one thread calls the function, over and
over, with whatever has gathered meanwhile. At rest a call holds one item and nobody waits for
company; under load it holds up to ``max_batch``. There is no timer.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Generic, TypeVar

from models.errors import Contention, Unavailable

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_log = logging.getLogger("waybill.batcher")


class Batcher(Generic[Item, Answer]):
    """Calls ``function`` with batches, from a thread of its own, and hands every caller its answer.

    Whatever the function raises reaches all callers of that batch, and the thread goes on. A
    :class:`Contention` is tried again first.

    Args:
        name: Of the thread.
        function: Takes items, returns as many answers in the same order.
        max_batch: Items in one call, at most.
        max_waiting: Items that may wait; beyond it callers are refused.
        attempts: Calls made of one batch while it meets contention.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[Sequence[Item]], Sequence[Answer]],
        *,
        max_batch: int = 200,
        max_waiting: int = 5_000,
        attempts: int = 4,
    ) -> None:
        self._name = name
        self._function = function
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._attempts = attempts
        self._queue: SimpleQueue[tuple[Item, asyncio.Future[Answer]] | None] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def call(self, item: Item) -> "asyncio.Future[Answer]":
        """The answer to ``item``, to be awaited. Call it on the event loop.

        Raises:
            Unavailable: Too many wait already.
        """
        if self._queue.qsize() >= self._max_waiting:
            raise Unavailable("Too many requests wait already", retry_after=1)
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._queue.put((item, future))
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        return future

    def close(self, timeout_seconds: float = 10) -> None:
        """Answer what waits, then stop."""
        if self._thread is not None and self._thread.is_alive():
            self._queue.put(None)
            self._thread.join(timeout_seconds)
        self._thread = None

    def _run(self) -> None:
        while True:
            first = self._queue.get()
            if first is None:
                return
            batch, is_last = [first], False
            while len(batch) < self._max_batch and not self._queue.empty():
                item = self._queue.get()
                if item is None:
                    is_last = True
                    break
                batch.append(item)
            self._serve(batch)
            if is_last:
                return

    def _serve(self, batch: "list[tuple[Item, asyncio.Future[Answer]]]") -> None:
        futures = [future for _, future in batch]
        answers: Sequence[Answer] = ()
        error: BaseException | None = None
        try:
            answers = self._call([item for item, _ in batch])
            if len(answers) != len(batch):
                error = RuntimeError(f"{self._name}: {len(answers)} answers to {len(batch)} items")
        except BaseException as raised:  # a thread that died silently would leave everybody hanging
            error = raised
        try:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(_resolve, futures, answers, error)
        except RuntimeError:
            _log.warning("the event loop is gone; answers are dropped", extra={"answers": len(batch)})

    def _call(self, items: list[Item]) -> Sequence[Answer]:
        for attempt in range(1, self._attempts):
            try:
                return self._function(items)
            except Contention:
                time.sleep(0.01 * attempt)
        return self._function(items)


def _resolve(
    futures: "Sequence[asyncio.Future[Answer]]", answers: Sequence[Answer], error: BaseException | None
) -> None:
    """Hand out the answers, on the event loop: one crossing for the whole batch."""
    if error is None:
        for future, answer in zip(futures, answers, strict=True):
            if not future.done():
                future.set_result(answer)
        return
    shared = error if isinstance(error, Exception) else RuntimeError(f"the batch ended in {error!r}")
    for future in futures:
        if not future.done():
            future.set_exception(shared)
