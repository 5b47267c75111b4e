"""A limiter that counts in this process alone: where there is no Redis, and while it is away."""

import time
from collections import deque
from collections.abc import Callable
from math import ceil

from api_shim.gate.limiter import PARTS, Verdict
from models.quotas import Quota

_CALLERS = 100_000
_LOOKED_AT = 2


class _Window:
    """What one key has used: parts of the window in order, as [part, requests in it]."""

    __slots__ = ("parts", "seconds", "used")

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds
        self.parts: deque[list[int]] = deque()
        self.used = 0

    def slide(self, now: float) -> int:
        """Forget what has left the window; the number of the present part."""
        current = int(now * PARTS / self.seconds)
        while self.parts and self.parts[0][0] <= current - PARTS:
            self.used -= self.parts.popleft()[1]
        return current

    def add(self, part: int) -> None:
        """Count one request."""
        if self.parts and self.parts[-1][0] == part:
            self.parts[-1][1] += 1
        else:
            self.parts.append([part, 1])
        self.used += 1


class MemoryLimiter:
    """Counts in memory, of at most so many callers.

    Args:
        capacity: Keys remembered; beyond it those go that were met first.
        now: Seconds.
    """

    def __init__(self, *, capacity: int = _CALLERS, now: Callable[[], float] = time.monotonic) -> None:
        self._capacity = capacity
        self._now = now
        self._windows: dict[str, _Window] = {}

    def __len__(self) -> int:
        return len(self._windows)

    async def start(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    async def take(self, key: str, quota: Quota) -> Verdict:
        """See :class:`~api_shim.gate.limiter.Limiter`."""
        return self.count(key, quota)

    def count(self, key: str, quota: Quota) -> Verdict:
        """The same, without waiting."""
        now = self._now()
        window = self._window(key, quota, now)
        part = window.slide(now)
        is_allowed = window.used < quota.amount
        if is_allowed:
            window.add(part)
        first = window.parts[0][0]
        reset = ceil((first + PARTS) * quota.seconds / PARTS - now)
        return Verdict(is_allowed, quota.amount - window.used, max(1, reset))

    def note(self, key: str, quota: Quota) -> None:
        """Count a request that was let pass elsewhere."""
        now = self._now()
        window = self._window(key, quota, now)
        part = window.slide(now)
        if window.used < quota.amount:
            window.add(part)

    def _window(self, key: str, quota: Quota, now: float) -> _Window:
        window = self._windows.get(key)
        if window is None:
            self._tidy(now)
            window = self._windows[key] = _Window(quota.seconds)
        return window

    def _tidy(self, now: float) -> None:
        """Look at those met first: drop who has been away for a window, put the others at the end."""
        for _ in range(min(_LOOKED_AT, len(self._windows))):
            key = next(iter(self._windows))
            window = self._windows.pop(key)
            window.slide(now)
            if window.used and len(self._windows) < self._capacity - 1:
                self._windows[key] = window
