"""SIGTERM, SIGINT and SIGHUP as one question: were we asked to stop?"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopped(BaseException):
    """Raised inside :meth:`StopRequest.interrupts` when the signal comes."""


class StopRequest:
    """Remembers that a signal came; interrupts only work that says it may be interrupted.

    A process that starts others must not be torn out between starting one and noting that it did, so
    the handler raises nothing by itself.
    """

    def __init__(self) -> None:
        self.is_requested = False
        self._may_interrupt = False

    def install(self) -> None:
        """Listen for the signals (main thread only)."""
        for number in _SIGNALS:
            signal.signal(number, self._handle)

    def __call__(self) -> bool:
        """Whether we were asked to stop."""
        return self.is_requested

    @contextmanager
    def interrupts(self) -> Iterator[None]:
        """Work that starts nothing and may take long: the signal ends it with :class:`Stopped`."""
        if self.is_requested:
            raise Stopped
        self._may_interrupt = True
        try:
            yield
        finally:
            self._may_interrupt = False

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.is_requested = True
        if self._may_interrupt:
            self._may_interrupt = False
            raise Stopped
