"""The stopwatch: how long clients waited for answers, apart from when something was broken."""

import threading
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from tests.chaos.history import Line

SETTLING_SECONDS = 30.0
"""So long after a fault was lifted its requests are not counted."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Requests that met no fault.

    Attributes:
        requests: How many.
        errors: Of them answered 5xx, or not at all.
        median: Seconds.
        p95: Seconds; 95 of 100 took at most that.
        p99: Likewise.
    """

    requests: int
    errors: int
    median: float
    p95: float
    p99: float


class Stopwatch:
    """Collects from many threads, 17 bytes a request."""

    def __init__(self) -> None:
        self._asked = array("d")
        self._took = array("d")
        self._failed = array("b")
        self._sent = 0
        self._first, self._last = float("inf"), float("-inf")
        self._lock = threading.Lock()

    @property
    def requests(self) -> int:
        """All that were timed."""
        return len(self._asked)

    @property
    def rate(self) -> float:
        """Requests a second from the first to the last, timed or not."""
        return self._sent / (self._last - self._first) if self._last > self._first else 0.0

    def note(self, asked: float, took: float, *, is_error: bool, waits: bool = False) -> None:
        """A request was answered, or given up.

        Args:
            asked: The history's seconds.
            took: Seconds.
            is_error: Whether a client would call it one.
            waits: It asked to be kept waiting: that says nothing of how long answers take.
        """
        with self._lock:
            self._sent += 1
            self._first, self._last = min(self._first, asked), max(self._last, asked)
            if waits:
                return
            self._asked.append(asked)
            self._took.append(took)
            self._failed.append(is_error)

    def pace(self, lines: Sequence[Line], settling_seconds: float = SETTLING_SECONDS) -> Pace | None:
        """Requests outside of the faults and what follows them; None where there were none.

        Args:
            lines: The history: its ``fault`` and ``healed`` are what counts.
            settling_seconds: What is left out after each fault.
        """
        windows = _windows(lines, settling_seconds)
        begins = [begin for begin, _ in windows]
        times, errors = [], 0
        for asked, took, failed in zip(self._asked, self._took, self._failed, strict=True):
            place = bisect_right(begins, asked + took)
            if place and windows[place - 1][1] >= asked:
                continue
            times.append(took)
            errors += failed
        if not times:
            return None
        times.sort()
        median, p95, p99 = (times[int(len(times) * share)] for share in (0.5, 0.95, 0.99))
        return Pace(len(times), errors, median, p95, p99)


def _windows(lines: Sequence[Line], settling_seconds: float) -> list[tuple[float, float]]:
    """From each fault until it is forgotten; they do not overlap, and come in their order."""
    windows: list[tuple[float, float]] = []
    for line in lines:
        if line["event"] == "fault":
            windows.append((line["at"], float("inf")))
        elif line["event"] == "healed":
            windows[-1] = (windows[-1][0], line["at"] + settling_seconds)
            if len(windows) > 1 and windows[-2][1] >= windows[-1][0]:
                windows[-2:] = [(windows[-2][0], windows[-1][1])]
    return windows
