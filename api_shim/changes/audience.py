"""Who listens to streams, and how many at once. Bounded for each principal and for the process."""

from collections import Counter
from collections.abc import Callable
from uuid import UUID

from models.errors import RateLimited, Unavailable
from models.identity.principals import Principal
from models.metrics import STREAMS

MAX_STREAMS = 20_000


class Audience:
    """Counts open streams.

    Args:
        most_for_each: Streams of one principal, event streams and WebSockets together.
        most: Streams of this process.
    """

    def __init__(self, most_for_each: int, most: int = MAX_STREAMS) -> None:
        self._most_for_each = most_for_each
        self._most = most
        self._open: Counter[UUID] = Counter()

    def admit(self, principal: Principal, kind: str) -> Callable[[], None]:
        """Let one more in; call what comes back, once, when it leaves.

        Raises:
            RateLimited: This principal has as many as one may have.
            Unavailable: The process has.
        """
        if self._open[principal.id] >= self._most_for_each:
            raise RateLimited(f"You have {self._most_for_each} streams open already", retry_after=5)
        if self._open.total() >= self._most:
            raise Unavailable("Too many streams are open already", retry_after=5)
        self._open[principal.id] += 1
        STREAMS.labels(kind).inc()

        def leave() -> None:
            STREAMS.labels(kind).dec()
            self._open[principal.id] -= 1
            if not self._open[principal.id]:
                del self._open[principal.id]

        return leave
