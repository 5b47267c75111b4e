"""An actor: somebody who works with the platform in a thread of their own, turn by turn, until stopped."""

import threading
from abc import ABC, abstractmethod


class Actor(ABC):
    """A thread whose own fault is kept, and raised where it is stopped.

    Args:
        patience_seconds: How long its last turn may take.
    """

    def __init__(self, patience_seconds: float = 60) -> None:
        self._must_stop = threading.Event()
        self._patience_seconds = patience_seconds
        self._thread = threading.Thread(target=self._work, name=type(self).__name__, daemon=True)
        self._fault: Exception | None = None

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Begin nothing new; waits for the last turn.

        Raises:
            Exception: The harness is wrong, or was told what it does not reckon with.
        """
        self._must_stop.set()
        self._thread.join(self._patience_seconds)
        if self._fault is not None:
            raise self._fault

    @abstractmethod
    def _take_turn(self) -> None:
        """Do something, and rest; what the platform does to it is no fault."""

    def _work(self) -> None:
        try:
            while not self._must_stop.is_set():
                self._take_turn()
        except Exception as fault:
            self._fault = fault
            raise
