"""What the broker says of our queues: whether they exist, how full they are, who consumes from them."""

import threading
import time
from dataclasses import dataclass

from celery import Celery

from models.errors import BrokerUnavailable
from tasks.names import DELIVERIES_QUEUE, JOB_QUEUES
from tasks.publisher import Publisher

FRESH_SECONDS = 1.0
"""For how long an answer is repeated without asking the broker."""

PATIENCE_SECONDS = 2
"""How long the broker may take to answer, and how long to wait for another who asks it."""

_NO_ANSWER = "the broker does not answer"


@dataclass(frozen=True, slots=True)
class QueueState:
    """A queue at a moment.

    Attributes:
        messages: That wait in it; what workers hold already is not counted.
        consumers: Workers that take from it.
    """

    messages: int
    consumers: int


class Presence:
    """Looks at the queues that the platform cannot work without.

    Args:
        app: The Celery application whose broker is asked.
    """

    def __init__(self, app: Celery) -> None:
        self._publisher = Publisher(app, patience_seconds=PATIENCE_SECONDS)
        self._asking = threading.Lock()
        self._asked_at = float("-inf")
        self._missing: str | None = None
        self._queues: dict[str, tuple[float, QueueState | None]] = {}

    def missing(self) -> str | None:
        """What is missing, in a few words; None where every queue has a consumer. Blocks: not for a loop."""
        if not self._asking.acquire(timeout=PATIENCE_SECONDS):
            return _NO_ANSWER
        try:
            if time.monotonic() - self._asked_at > FRESH_SECONDS:
                self._missing = self._ask()
                self._asked_at = time.monotonic()
            return self._missing
        finally:
            self._asking.release()

    def _ask(self) -> str | None:
        try:
            for queue in (*JOB_QUEUES.values(), DELIVERIES_QUEUE):
                if self._publisher.consumers(queue) == 0:
                    return f"no worker consumes {queue}"
        except BrokerUnavailable:
            return _NO_ANSWER
        return None

    def queue(self, name: str) -> QueueState | None:
        """How a queue stands; None where the broker does not answer. Blocks: not for a loop."""
        if self._missing == _NO_ANSWER and time.monotonic() - self._asked_at < FRESH_SECONDS:
            return None
        if not self._asking.acquire(timeout=PATIENCE_SECONDS):
            return None
        try:
            asked_at, state = self._queues.get(name, (float("-inf"), None))
            if time.monotonic() - asked_at > FRESH_SECONDS:
                try:
                    state = QueueState(self._publisher.depth(name), self._publisher.consumers(name))
                except BrokerUnavailable:
                    state = None
                self._queues[name] = (time.monotonic(), state)
            return state
        finally:
            self._asking.release()

    def close(self) -> None:
        """Let the connection go."""
        self._publisher.close()
