"""How much of the machine others used meanwhile: what a load average cannot tell from our own work."""

import os
import resource
import time

import psutil


class Strangers:
    """Measures from its making on. This process and all that descends from it count as ours."""

    def __init__(self) -> None:
        self._at = time.monotonic()
        self._busy = _busy_seconds()
        self._ours = _our_seconds()

    def share(self) -> float:
        """CPU time of all other processes, as a share of all that the machine's cores could give."""
        capacity = (time.monotonic() - self._at) * (os.cpu_count() or 1)
        theirs = (_busy_seconds() - self._busy) - (_our_seconds() - self._ours)
        return min(max(theirs / capacity, 0.0), 1.0)


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    waiting = times.idle + getattr(times, "iowait", 0.0)
    guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # counted in user already
    return float(sum(times) - waiting - guests)


def _our_seconds() -> float:
    """Living descendants with the children that they have reaped, and what we have reaped ourselves."""
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        total += usage.ru_utime + usage.ru_stime
    for process in psutil.Process().children(recursive=True):
        try:
            total += sum(process.cpu_times()[:4])
        except psutil.Error:
            continue
    return total
