"""The end of a process that cannot end by itself, whatever holds it. Drains nothing."""

import _thread
import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

import psutil

STOP_SECONDS = 26.0
"""Below the 30 s that Kubernetes and others give before they kill."""

_GONE_SECONDS = 2.0
_SPARE_SECONDS = 1.0

_log = logging.getLogger("waybill.stop")


class StopDeadline:
    """Ends this process and its children some time after it began to stop, unless it has ended by itself.

    Nothing is lost by it: a transaction rolls back, a message that is not acknowledged comes again, and a
    job is announced again.

    Where even the thread that does it cannot run, SIGALRM ends the process a little later.

    Args:
        seconds: From :meth:`begin` on.
    """

    def __init__(self, seconds: float = STOP_SECONDS) -> None:
        self._seconds = seconds
        self._has_begun = False

    def begin(self, *told: Callable[[], None]) -> bool:
        """Let the time run. May be called by a signal's handler, which another signal may interrupt.

        Args:
            told: Called at the first time, not in this thread: whatever the handler interrupted may hold
                the lock that they wait for, of an event too.

        Returns:
            Whether this was the first time.
        """
        if self._has_begun:
            return False
        self._has_begun = True
        # What needs nothing of this process, for the case that the thread below cannot run.
        signal.setitimer(signal.ITIMER_REAL, self._seconds + _GONE_SECONDS + 1.5 * _SPARE_SECONDS)
        for one in (self._run, *told):
            _start(one)
        return True

    def _run(self) -> None:
        time.sleep(self._seconds)
        end_with_children(0, _tell)


def _tell() -> None:
    _log.warning("ended before everything was finished: the rest is given back")


def _start(function: Callable[[], None]) -> None:
    """Call it in a thread; not by ``threading``, whose locks may be held as well."""
    _thread.start_new_thread(function, ())


def end_with_children(status: int, tell: Callable[[], None]) -> None:
    """Kill this process's children, then end it at once, whatever its threads do. Does not return.

    Args:
        status: Its exit status.
        tell: Called before, and waited for only briefly: the log may be held by what hangs.
    """
    told = _thread.allocate_lock()
    told.acquire()

    def run() -> None:
        try:
            tell()
        finally:
            told.release()

    _start(run)
    told.acquire(timeout=_SPARE_SECONDS)
    try:
        children = psutil.Process().children(recursive=True)
        for child in children:
            with suppress(psutil.Error):
                child.kill()
        psutil.wait_procs(children, timeout=_GONE_SECONDS)  # a kill takes a moment: none of them outlives us
    finally:
        os._exit(status)


def ignore_signals() -> None:
    """Hear no further signal: the process is at its end. For a main thread.

    The interpreter puts its handlers back to the default before it is gone, and a signal that came then
    would be the exit status.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
