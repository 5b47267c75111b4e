"""Working for many receivers side by side, so that a slow or dead one delays nobody. Knows no deliveries.

::

    put ──▶ a queue for each receiver ──turn──▶ threads ──▶ work(item) ──▶ did it answer promptly?
                                                  ▲                                 │
                    one at a time until it has    └──────── next turn ◀─────────────┘
                    answered promptly, then several

A thread is held for as long as a receiver lets it wait. So receivers that have not answered promptly last
time get one thread each, and all of them together at most half of the threads: the other half is for those
that do answer.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Generic, TypeVar

from models import metrics

THREADS = 48
AT_ONCE = 8
"""Threads that one receiver gets once it has answered promptly."""
ROOM = 400
"""Items that may wait for one receiver."""
PROMPT_SECONDS = 2.0
"""An answer within this time is a prompt one."""
_REMEMBERED = 4096

_log = logging.getLogger("waybill.dispatch")
_Item = TypeVar("_Item")


@dataclass(slots=True)
class _Receiver(Generic[_Item]):
    """Whom items are for.

    Attributes:
        limit: Threads that it gets at most.
        turns: Threads that work for it, or are about to.
        on_bench: It waits for a thread of those for the unproven.
    """

    name: str
    limit: int
    waiting: deque[_Item] = field(default_factory=deque)
    turns: int = 0
    is_prompt: bool = False
    on_bench: bool = False


class Dispatch(Generic[_Item]):
    """Threads that take turns between receivers. Threads are made as they are needed.

    Args:
        work: Does one item; whether its receiver works, None where it was not asked. Whatever it raises is
            logged.
        threads: How many at most.
    """

    def __init__(self, work: Callable[[_Item], bool | None], *, threads: int = THREADS) -> None:
        self._work = work
        self._threads = threads
        self._for_unproven = max(1, threads // 2)
        self._unproven_turns = 0
        self._bench: deque[_Receiver[_Item]] = deque()
        self._receivers: dict[str, _Receiver[_Item]] = {}
        self._turns: SimpleQueue[tuple[_Receiver[_Item], bool] | None] = SimpleQueue()
        self._started = 0
        self._open_turns = 0
        self._is_closed = False
        self._changed = threading.Condition()

    def put(self, name: str, items: Sequence[_Item], *, at_once: int = AT_ONCE) -> list[_Item]:
        """Have ``items`` done for receiver ``name``, in their order as far as it gets one thread.

        Returns:
            Those for which there is no room.
        """
        with self._changed:
            if self._is_closed:
                return list(items)
            receiver = self._receivers.setdefault(name, _Receiver(name, at_once))
            room = max(0, ROOM - len(receiver.waiting))
            receiver.waiting.extend(items[:room])
            metrics.SENDS_WAITING.inc(len(items[:room]))
            self._give_turns(receiver)
        return list(items[room:])

    def drop(self, name: str) -> list[_Item]:
        """Take back all that waits for a receiver."""
        with self._changed:
            receiver = self._receivers.get(name)
            return [] if receiver is None else self._emptied(receiver)

    def wait_idle(self, timeout_seconds: float) -> bool:
        """Wait until nothing waits and nobody works; whether that came in time."""
        with self._changed:
            return self._changed.wait_for(self._is_idle, timeout_seconds)

    def close(self, timeout_seconds: float) -> list[_Item]:
        """Begin nothing more and give work under way that long; what was not begun."""
        with self._changed:
            self._is_closed = True
            left = [item for receiver in self._receivers.values() for item in self._emptied(receiver)]
            for _ in range(self._started):
                self._turns.put(None)
            self._changed.wait_for(self._is_idle, timeout_seconds)
        return left

    # ---- under the lock ------------------------------------------------------------------

    def _is_idle(self) -> bool:
        return not self._open_turns and not any(one.waiting for one in self._receivers.values())

    def _emptied(self, receiver: _Receiver[_Item]) -> list[_Item]:
        items = list(receiver.waiting)
        receiver.waiting.clear()
        metrics.SENDS_WAITING.dec(len(items))
        return items

    def _give_turns(self, receiver: _Receiver[_Item]) -> None:
        """Give a receiver as many threads as it may have and can use."""
        limit = receiver.limit if receiver.is_prompt else 1
        useful = min(limit - receiver.turns, len(receiver.waiting))
        for _ in range(useful):
            if not self._give_turn(receiver):
                return

    def _give_turn(self, receiver: _Receiver[_Item]) -> bool:
        is_unproven = not receiver.is_prompt
        if is_unproven and self._unproven_turns >= self._for_unproven:
            if not receiver.on_bench:
                receiver.on_bench = True
                self._bench.append(receiver)
            return False
        self._unproven_turns += is_unproven
        receiver.turns += 1
        self._open_turns += 1
        self._turns.put((receiver, is_unproven))
        if self._started < min(self._threads, self._open_turns):
            self._started += 1
            threading.Thread(target=self._run, name="dispatch", daemon=True).start()
        return True

    def _end_turn(self, receiver: _Receiver[_Item], *, was_unproven: bool) -> None:
        receiver.turns -= 1
        self._open_turns -= 1
        self._unproven_turns -= was_unproven
        self._give_turns(receiver)
        while self._bench and self._unproven_turns < self._for_unproven:
            waiting = self._bench.popleft()
            waiting.on_bench = False
            self._give_turns(waiting)
        if not receiver.turns and not receiver.waiting and len(self._receivers) > _REMEMBERED:
            self._receivers.pop(receiver.name, None)
        self._changed.notify_all()

    # ---- a thread ------------------------------------------------------------------------

    def _run(self) -> None:
        while (turn := self._turns.get()) is not None:
            receiver, was_unproven = turn
            with self._changed:
                item = receiver.waiting.popleft() if receiver.waiting else None
                metrics.SENDS_WAITING.dec(item is not None)
            if item is not None:
                is_prompt = self._is_done_promptly(item)
                with self._changed:
                    receiver.is_prompt = receiver.is_prompt if is_prompt is None else is_prompt
            with self._changed:
                self._end_turn(receiver, was_unproven=was_unproven)

    def _is_done_promptly(self, item: _Item) -> bool | None:
        began = time.monotonic()
        try:
            works = self._work(item)
            return works and time.monotonic() - began < PROMPT_SECONDS
        except Exception:
            _log.exception("a delivery could not be handled; it is announced again")
            return False
