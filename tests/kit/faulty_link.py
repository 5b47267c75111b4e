"""A TCP link with weather: one loopback port forwarded to another, well or badly. Only cut: ``proxy.py``.

Each connection has two threads, one a direction; both ask before each piece how the link is just now.
A connection that lost bytes is reset when the link heals: TCP itself never goes on after a gap.
"""

import contextlib
import socket
import struct
import threading
import time
from dataclasses import dataclass
from enum import StrEnum

_PIECE = 65536
_RST = struct.pack("ii", 1, 0)


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


class _Line:
    """One connection: two sockets, and what has become of it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.is_damaged = False
        self.is_over = False
        self.replied = 0

    def close(self, *, is_reset: bool = False) -> None:
        for one in (self.client, self.server):
            with contextlib.suppress(OSError):
                if is_reset:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
                else:
                    one.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RD)  # wakes the thread that reads; close alone would not
            with contextlib.suppress(OSError):
                one.close()


class FaultyLink:
    """Forwards a port of its own to ``target_port`` on loopback, in the weather that it is told.

    Args:
        name: For people.
        target_port: Where the server listens; it may come and go.
    """

    def __init__(self, name: str, target_port: int) -> None:
        self.name = name
        self._target_port = target_port
        self._weather = FAIR
        self._changed = threading.Condition()
        self._lines: set[_Line] = set()
        self._is_closed = False
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(128)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name=f"link {name}", daemon=True).start()

    @property
    def weather(self) -> Weather:
        """How it is now."""
        return self._weather

    @property
    def connections(self) -> int:
        """Open ones."""
        return len(self._lines)

    def set(self, weather: Weather) -> None:
        """Change the weather, for what is open and for what comes."""
        with self._changed:
            self._weather = weather
            lines = list(self._lines)
            for line in lines:
                line.replied = 0
            self._changed.notify_all()
        for line in lines:
            if weather.mode is Mode.RESET or (weather.mode is Mode.PASS and line.is_damaged):
                self._end(line, is_reset=True)
            elif weather.mode is Mode.HALF_CLOSE:
                self._half_close(line)

    def lead_to(self, port: int) -> None:
        """Forward to another port from now on, as a virtual address that moves; what is open stays."""
        self._target_port = port

    def heal(self) -> None:
        """Fair weather; connections that lost bytes are reset."""
        self.set(FAIR)

    def close(self) -> None:
        """End everything."""
        self._is_closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._changed:
            self._weather = FAIR
            self._changed.notify_all()
        for line in list(self._lines):
            self._end(line)

    # ---- connections -------------------------------------------------------------------

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        """Join a client to the server, as soon as the weather lets it."""
        with self._changed:
            self._changed.wait_for(lambda: self._weather.mode is not Mode.BLACK_HOLE)
        try:
            server = socket.create_connection(("127.0.0.1", self._target_port), timeout=5)
        except OSError:
            with contextlib.suppress(OSError):
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
            client.close()
            return
        server.settimeout(None)
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line = _Line(client, server)
        with self._changed:
            self._lines.add(line)
            mode = self._weather.mode
        if mode is Mode.RESET or self._is_closed:
            self._end(line, is_reset=True)
            return
        if mode is Mode.HALF_CLOSE:
            self._half_close(line)
        threading.Thread(target=self._pump, args=(line, client, server, False), daemon=True).start()
        threading.Thread(target=self._pump, args=(line, server, client, True), daemon=True).start()

    def _pump(self, line: _Line, source: socket.socket, sink: socket.socket, is_reply: bool) -> None:
        try:
            while data := source.recv(_PIECE):
                self._carry(line, sink, data, is_reply=is_reply)
            self._await_passage(line)
            if line.is_over:  # it was woken by our own hand, which closes in its own way
                return
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_WR)
            if is_reply:  # whoever the server has left has nothing more to say to it
                self._end(line)
        except OSError:
            self._end(line, is_reset=True)

    def _carry(self, line: _Line, sink: socket.socket, data: bytes, *, is_reply: bool) -> None:
        """Pass ``data`` on as the weather has it.

        Raises:
            OSError: The connection is over.
        """
        weather = self._await_passage(line)
        match weather.mode:
            case Mode.DELAY:
                time.sleep(weather.seconds)
            case Mode.TRICKLE:
                self._trickle(sink, data, weather)
                return
            case Mode.HALF_CLOSE if is_reply:
                line.is_damaged = True
                return
            case Mode.SWALLOW | Mode.TRUNCATE if is_reply:
                room = max(weather.after_bytes - line.replied, 0)
                line.replied += len(data)
                sink.sendall(data[:room])
                if len(data) > room:
                    line.is_damaged = True
                    if weather.mode is Mode.TRUNCATE:
                        raise ConnectionAbortedError("truncated")
                return
        sink.sendall(data)

    def _await_passage(self, line: _Line) -> Weather:
        """Wait out a black hole; the weather after it."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._weather.mode is not Mode.BLACK_HOLE or line not in self._lines
            )
            return self._weather

    def _trickle(self, sink: socket.socket, data: bytes, weather: Weather) -> None:
        """Piece by piece, and the rest at once when the weather changes."""
        for start in range(0, len(data), weather.piece):
            if self._weather is not weather:
                sink.sendall(data[start:])
                return
            sink.sendall(data[start : start + weather.piece])
            time.sleep(weather.seconds)

    def _half_close(self, line: _Line) -> None:
        line.is_damaged = True
        with contextlib.suppress(OSError):
            line.client.shutdown(socket.SHUT_WR)

    def _end(self, line: _Line, *, is_reset: bool = False) -> None:
        with self._changed:
            self._lines.discard(line)
            line.is_over = True
            self._changed.notify_all()
        line.close(is_reset=is_reset)
