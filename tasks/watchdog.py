"""Ends a worker whose main loop stands still, so that its launcher starts it anew."""

import logging
import os
import sys
import threading
import traceback

from models.stop_deadline import end_with_children

STALLED_SECONDS = 60
"""Above every pause that the loop makes by design, and the 30 s after which a silent peer is given up."""

_DEEPEST_FRAMES = 12

_log = logging.getLogger("waybill.tasks")


class Watchdog:
    """Watches the thread that made it, from a thread of its own, while it is entered.

    A worker whose main loop hangs looks well from outside: its process lives, its connections stand, and what
    it has taken is never done. Nothing is lost when it is ended: its messages come again.

    Args:
        patience_seconds: How long the loop may be without a beat. Counted while this process runs: one that
            was frozen is not blamed for it.
    """

    def __init__(self, patience_seconds: int = STALLED_SECONDS) -> None:
        self._patience_seconds = patience_seconds
        self._watched = threading.get_ident()
        self._silent_seconds = 0
        self._is_over = threading.Event()

    def beat(self) -> None:
        """Tell that the loop goes on."""
        self._silent_seconds = 0

    def __enter__(self) -> "Watchdog":
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()

    def _watch(self) -> None:
        while not self._is_over.wait(1):
            self._silent_seconds += 1
            if self._silent_seconds > self._patience_seconds:
                end_with_children(os.EX_SOFTWARE, self._tell)

    def _tell(self) -> None:
        _log.critical(
            "the main loop stands still: this worker ends itself, to be started anew",
            extra={"seconds": self._silent_seconds, "stack": self._stack()},
        )

    def _stack(self) -> list[str]:
        frame = sys._current_frames().get(self._watched)
        summary = traceback.extract_stack(frame)[-_DEEPEST_FRAMES:] if frame else []
        return [f"{one.filename}:{one.lineno} {one.name}" for one in summary]
