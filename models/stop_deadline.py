"""The end of a process that cannot end by itself, whatever holds it. Drains nothing."""

import _thread
import logging
import os
import signal
import time
from contextlib import suppress

import psutil

STOP_SECONDS = 26.0
"""Below the 30 s that Kubernetes and others give before they kill."""

_GONE_SECONDS = 2.0

_log = logging.getLogger("waybill.stop")


class StopDeadline:
    """Ends this process and its children some time after it began to stop, unless it has ended by itself.

    Nothing is lost by it: a transaction rolls back, a message that is not acknowledged comes again, and a
    job is announced again.

    Args:
        seconds: From :meth:`begin` on.
    """

    def __init__(self, seconds: float = STOP_SECONDS) -> None:
        self._seconds = seconds
        self._has_begun = False

    def begin(self) -> None:
        """Let the time run; once is enough. May be called by a signal's handler."""
        if not self._has_begun:
            self._has_begun = True
            # Not by ``threading``: its locks may be held by whatever the handler interrupted.
            _thread.start_new_thread(self._run, ())

    def _run(self) -> None:
        time.sleep(self._seconds)
        _log.warning("ended before everything was finished: the rest is given back")
        end_with_children(0)


def end_with_children(status: int) -> None:
    """Kill this process's children, then end it at once, whatever its threads do. Does not return.

    Args:
        status: Its exit status.
    """
    children = psutil.Process().children(recursive=True)
    for child in children:
        with suppress(psutil.Error):
            child.kill()
    psutil.wait_procs(children, timeout=_GONE_SECONDS)  # a kill takes a moment: none of them outlives us
    os._exit(status)


def ignore_signals() -> None:
    """Hear no further signal: the process is at its end. For a main thread.

    The interpreter puts its handlers back to the default before it is gone, and a signal that came then
    would be the exit status.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
