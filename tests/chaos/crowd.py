"""The crowd: the workload's clients side by side, at a bounded rate. What each does: ``workload.py``."""

import random
import threading
import time
from collections.abc import Sequence

from tests.chaos.wire import ANSWER_SECONDS, RESENDS
from tests.chaos.workload import Worker


class Crowd:
    """Several workers side by side, at a bounded rate.

    Args:
        workers: Each gets a thread.
        rate: Acts a second, of all together.
        chance: For the pauses.
    """

    def __init__(self, workers: Sequence[Worker], rate: float, chance: random.Random) -> None:
        self._stop = threading.Event()
        pause = len(workers) / rate
        self._threads = [
            threading.Thread(
                target=self._work, args=(one, pause, random.Random(chance.random())), daemon=True
            )
            for one in workers
        ]
        self.faults: list[BaseException] = []

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """No new acts; waits for those under way."""
        self._stop.set()
        for thread in self._threads:
            thread.join(ANSWER_SECONDS * (RESENDS + 2))
        if self.faults:
            raise self.faults[0]

    def _work(self, worker: Worker, pause: float, chance: random.Random) -> None:
        due = time.monotonic()
        try:
            while not self._stop.is_set():
                worker.act()
                due = max(due + chance.expovariate(1 / pause), time.monotonic() - 1)
                self._stop.wait(max(due - time.monotonic(), 0))
        except Exception as fault:  # the harness is wrong, or an answer is beyond what it reckons with
            self.faults.append(fault)
            raise
