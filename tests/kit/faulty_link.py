"""A TCP link with weather: one loopback port forwarded to another, well or badly. Only cut: ``proxy.py``.

The links of a process are carried by one process beside it, ``relay.py``: a busy machine would feel threads.
A connection that lost bytes is reset when the link heals: TCP itself never goes on after a gap.
"""

import functools
import json
import os
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

_CHECKOUT = Path(__file__).parents[2]


class Mode(StrEnum):
    """How a link is."""

    PASS = "pass"
    """Well."""
    DELAY = "delay"
    """Each piece comes late."""
    TRICKLE = "trickle"
    """A few bytes at a time."""
    BLACK_HOLE = "black-hole"
    """Nothing passes and nobody is told; it comes when the link heals, as TCP would send it again."""
    RESET = "reset"
    """Every connection is reset, also new ones."""
    HALF_CLOSE = "half-close"
    """The client is told that the server ended; what it still sends arrives."""
    SWALLOW = "swallow"
    """Requests arrive, replies vanish after so many bytes; the connection stays open."""
    TRUNCATE = "truncate"
    """Requests arrive, replies end after so many bytes, and the connection with them."""


@dataclass(frozen=True, slots=True)
class Weather:
    """A mode and its measure.

    Attributes:
        seconds: How late, of ``DELAY``; the pause between two pieces, of ``TRICKLE``.
        after_bytes: Of each connection's replies, counted from the moment when the weather came.
        piece: Bytes at a time, of ``TRICKLE``.
    """

    mode: Mode = Mode.PASS
    seconds: float = 0.0
    after_bytes: int = 0
    piece: int = 512


FAIR = Weather()


class FaultyLink:
    """Forwards a port of its own to ``target_port`` on loopback, in the weather that it is told.

    Args:
        name: For people.
        target_port: Where the server listens; it may come and go.
    """

    def __init__(self, name: str, target_port: int) -> None:
        self.name = name
        self._weather = FAIR
        self.port: int = _relay().ask("open", target_port)

    @property
    def weather(self) -> Weather:
        """How it is now."""
        return self._weather

    @property
    def connections(self) -> int:
        """Open ones."""
        return int(_relay().ask("count", self.port))

    def set(self, weather: Weather) -> None:
        """Change the weather, for what is open and for what comes."""
        self._weather = weather
        _relay().ask("set", self.port, asdict(weather))

    def lead_to(self, port: int) -> None:
        """Forward to another port from now on, as a virtual address that moves; what is open stays."""
        _relay().ask("lead", self.port, port)

    def heal(self) -> None:
        """Fair weather; connections that lost bytes are reset."""
        self.set(FAIR)

    def close(self) -> None:
        """End everything."""
        _relay().ask("close", self.port)


class _Relay:
    """The process that carries our links. It ends with us, when its input does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            (sys.executable, "-P", "-m", "tests.kit.relay"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(_CHECKOUT)},
            start_new_session=True,  # Ctrl-C is for us, who still have to heal what is broken
        )

    def ask(self, *question: Any) -> Any:
        """Have it do something; what it says.

        Raises:
            ConnectionError: It is no more.
        """
        with self._lock:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        if not answer:
            raise ConnectionError("the process that carries the links has ended; see what it said before")
        return json.loads(answer)


@functools.cache
def _relay() -> _Relay:
    return _Relay()
