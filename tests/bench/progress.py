"""Watching rows arrive from outside, alike for every contender: one count, seldom asked. No starting."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.bench.processes import BenchFailure

FIRST_LOOK_SECONDS = 0.005
LONGEST_PAUSE_SECONDS = 0.25
STALLED_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Progress:
    """When how many rows were there, by ``time.monotonic()``.

    Attributes:
        first_count: Rows at the first look that saw any: a batch shows itself as a whole.
        last_at: When all rows were seen.
    """

    first_at: float
    first_count: int
    last_at: float
    last_count: int

    @property
    def steady_rate(self) -> float:
        """Rows per second from the first rows seen to the last; those first seen are not counted.

        This leaves out interpreter start and connecting, for everybody alike.
        """
        seconds = self.last_at - self.first_at
        return (self.last_count - self.first_count) / seconds if seconds > 0 else float("inf")


def watch(count_applied: Callable[[], int], target: int) -> Progress:
    """Look until ``target`` rows are there.

    Looks every 5 ms for the first row; afterwards it estimates what is left from the rate so far and
    sleeps half of that (5 to 250 ms), so that it ends within milliseconds of the last row and costs the
    contenders next to nothing.

    Raises:
        BenchFailure: Nothing moved for 60 seconds.
    """
    first: tuple[float, int] | None = None
    count, moved_at = 0, time.monotonic()
    while True:
        seen, now = count_applied(), time.monotonic()
        if seen != count:
            count, moved_at = seen, now
        if first is None and count:
            first = (now, count)
        if first and count >= target:
            return Progress(*first, now, count)
        if now - moved_at > STALLED_SECONDS:
            raise BenchFailure(f"stalled at {count} of {target} rows for {STALLED_SECONDS:.0f} s")
        time.sleep(_pause(first, now, count, target))


def _pause(first: tuple[float, int] | None, now: float, count: int, target: int) -> float:
    if first is None or count == first[1]:
        return FIRST_LOOK_SECONDS
    remaining = (target - count) * (now - first[0]) / (count - first[1])
    return min(max(remaining / 2, FIRST_LOOK_SECONDS), LONGEST_PAUSE_SECONDS)
