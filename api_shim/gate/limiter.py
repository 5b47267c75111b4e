"""What a limiter promises. Two keep it: ``memory_limiter.py`` and ``redis_limiter.py``.

Requests are counted in a sliding window, in sixtieths of it: a request counts until the sixtieth
that it fell into has left the window. So a quota cannot be had twice around the edge of a window,
and a window takes at most sixty numbers to remember, however large the quota is. What is refused
does not count.
"""

from dataclasses import dataclass
from typing import Protocol

from models.quotas import Quota

PARTS = 60
"""Parts of a window that are counted on their own."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one request may pass.

    Attributes:
        remaining: How many more may, now.
        reset_seconds: Whole seconds until there is room for at least one more; 1 or more.
    """

    is_allowed: bool
    remaining: int
    reset_seconds: int


class Limiter(Protocol):
    """Counts requests by key. One quota a key: a key under another quota is another key."""

    async def start(self) -> None:
        """Get ready; called once on the event loop, before the first request. Never raises."""

    async def take(self, key: str, quota: Quota) -> Verdict:
        """Count one request of ``key``, if there is room for it. Never raises."""

    async def close(self) -> None:
        """Let go of what was opened."""
