"""The history: what clients asked and were told, line by line (JSONL). Judges nothing; see ``checker.py``.

Times are seconds since the history began, by one monotonic clock. Every operation has a number, ``op``; its
lines are ``invoke`` and then at most one of

    ok        accepted: a job, and its id
    fail      refused for certain: it must have no effect
    unknown   no answer, or one that says nothing (5xx): it may have happened or not

An operation that is sent again under its idempotency key is the same operation. What was only looked at has
lines of its own: ``seen`` (a job), ``read`` (an entity), ``arrived`` (a callback), ``foreign`` (an answer
that names what its asker must not see). ``confirmed`` says that the broker has a message. ``fault`` and
``healed`` say what the machine did meanwhile.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

Line = dict[str, Any]
"""One line: ``at``, ``event``, and what the event has to say."""


class History:
    """Collects lines from many threads, and writes each to a file as it comes.

    Args:
        path: Written line by line.
        clock: Monotonic seconds.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.lines: list[Line] = []
        self._clock = clock
        self._began = clock()
        self._lock = threading.Lock()
        self._ops = 0
        self._stream = path.open("wb")

    def now(self) -> float:
        """Seconds since it began."""
        return self._clock() - self._began

    def add(self, event: str, **facts: Any) -> Line:
        """Write a line, stamped with the present time."""
        with self._lock:
            line = {"at": round(self.now(), 6), "event": event, **facts}
            self.lines.append(line)
            self._stream.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        return line

    def invoke(self, kind: str, **facts: Any) -> int:
        """An operation begins; its number. To be called before anything is sent."""
        with self._lock:
            self._ops += 1
            op = self._ops
        self.add("invoke", op=op, kind=kind, **facts)
        return op

    def close(self) -> None:
        """Finish the file."""
        with self._lock:
            self._stream.close()


@contextmanager
def kept(path: Path) -> Iterator[History]:
    """A history that is written to ``path``."""
    history = History(path)
    try:
        yield history
    finally:
        history.close()
