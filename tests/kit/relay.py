"""The process that carries the links of ``faulty_link.py``: told by lines of JSON what to do, until they end.

A question is ``[what, port, ...]``, its answer one line. In fair weather a piece is written on where it comes
in; in any other it waits its turn on its way, and asks how the link is just then.
"""

import asyncio
import contextlib
import json
import socket
import struct
import sys
from collections import deque
from typing import Any, cast

import uvloop

from tests.kit.faulty_link import FAIR, Mode, Weather

_CONNECT_SECONDS = 5.0
_RST = struct.pack("ii", 1, 0)


class Link:
    """One port, its target, and the weather between them.

    Args:
        target_port: Where the server listens.
        tasks: For what goes on; an error there ends the process.
    """

    def __init__(self, target_port: int, tasks: asyncio.TaskGroup) -> None:
        self.target_port = target_port
        self.weather = FAIR
        self.lines: set[Line] = set()
        self.tasks = tasks
        self._changed = asyncio.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._accepting = tasks.create_task(self._accept())
        self._joining: set[asyncio.Task[None]] = set()

    def set(self, weather: Weather) -> None:
        """Change the weather, for what is open and for what comes."""
        self.weather = weather
        self._changed.set()
        self._changed = asyncio.Event()
        for line in list(self.lines):
            line.replied = 0
            if weather.mode is Mode.RESET or (weather.mode is Mode.PASS and line.is_damaged):
                line.end(is_reset=True)
            elif weather.mode is Mode.HALF_CLOSE:
                line.half_close()

    async def passage(self) -> Weather:
        """Wait out a black hole; the weather after it."""
        while self.weather.mode is Mode.BLACK_HOLE:
            await self._changed.wait()
        return self.weather

    def close(self) -> None:
        """End everything."""
        for task in (self._accepting, *self._joining):
            task.cancel()
        self._listener.close()
        for line in list(self.lines):
            line.end()

    async def _accept(self) -> None:
        while True:
            client, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            task = self.tasks.create_task(self._join(client))
            self._joining.add(task)
            task.add_done_callback(self._joining.discard)

    async def _join(self, client: socket.socket) -> None:
        """Join a client to the server, as soon as the weather lets it."""
        server = socket.socket()
        line = Line(self)
        try:
            await self.passage()
            await line.connect(client, server)
        except OSError:  # of which a timeout is one
            _reset(client)
            _reset(server)
            return
        if self.weather.mode is Mode.RESET:
            line.end(is_reset=True)
        elif self.weather.mode is Mode.HALF_CLOSE:
            line.half_close()


class Line:
    """One connection: a way there and a way back, and what has become of it.

    Args:
        link: Its own.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        self.is_damaged = False
        self.is_half_closed = False
        self.is_over = False
        self.replied = 0
        self.joined = asyncio.Event()
        self._there = Way(self, is_reply=False)
        self._back = Way(self, is_reply=True)
        self._there.opposite, self._back.opposite = self._back, self._there

    @property
    def is_fair(self) -> bool:
        """Whether what comes in may go out at once."""
        return self.link.weather.mode is Mode.PASS and self.joined.is_set()

    async def connect(self, client: socket.socket, server: socket.socket) -> None:
        """Connect both ends, and begin.

        Raises:
            OSError: The server cannot be reached.
        """
        loop = asyncio.get_running_loop()
        server.setblocking(False)
        async with asyncio.timeout(_CONNECT_SECONDS):
            await loop.sock_connect(server, ("127.0.0.1", self.link.target_port))
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._there.source, self._back.source = client, server
        await loop.create_connection(lambda: self._back, sock=server)
        await loop.connect_accepted_socket(lambda: self._there, client)
        if self.is_over:  # the server ended meanwhile
            self._there.close(is_reset=True)
            return
        self.link.lines.add(self)
        self.joined.set()

    def half_close(self) -> None:
        """Tell the client that the server ended."""
        self.is_damaged = self.is_half_closed = True
        self._there.say_end()

    def end(self, *, is_reset: bool = False) -> None:
        """Close both ends."""
        self.is_over = True
        self.link.lines.discard(self)
        for way in (self._there, self._back):
            way.close(is_reset=is_reset)


class Way(asyncio.Protocol):
    """One direction of a line: what its source says is written to the source of the opposite way.

    Args:
        line: Its own.
        is_reply: Whether the server is its source.
    """

    source: socket.socket
    opposite: "Way"
    _transport: asyncio.Transport

    def __init__(self, line: Line, *, is_reply: bool) -> None:
        self._line = line
        self._is_reply = is_reply
        self._waiting: deque[bytes | None] = deque()
        self._carrying: asyncio.Task[None] | None = None
        self._is_held = False
        self._is_connected = False

    def say_end(self) -> None:
        """Tell the source that nothing more will be written to it."""
        with contextlib.suppress(OSError, RuntimeError):  # it has ended, or was told before
            self._transport.write_eof()

    def close(self, *, is_reset: bool) -> None:
        """Close the source's connection."""
        if self._carrying is not None and self._carrying is not asyncio.current_task():
            self._carrying.cancel()
        if not self._is_connected:
            return
        if is_reset:
            with contextlib.suppress(OSError):  # closed already
                self.source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
            self._transport.abort()
        else:
            self._transport.close()

    # ---- what the source says -----------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not say so of itself
        self._is_connected = True

    def data_received(self, data: bytes) -> None:
        if self._carrying is None and self._line.is_fair:
            self._write(data)
        else:
            self._put_off(data)

    def eof_received(self) -> bool:
        if self._carrying is None and self._line.is_fair:
            self._finish()
        else:
            self._put_off(None)
        return True

    def connection_lost(self, error: Exception | None) -> None:
        if not self._line.is_over:
            self._line.end(is_reset=error is not None)

    def pause_writing(self) -> None:
        """The source takes no more: hold what comes for it."""
        self.opposite.hold()

    def resume_writing(self) -> None:
        self.opposite.release()

    def hold(self) -> None:
        """Read nothing, until released."""
        self._is_held = True
        self._stop_reading()

    def release(self) -> None:
        self._is_held = False
        self._read_on()

    # ---- inside -------------------------------------------------------------------------

    def _stop_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def _read_on(self) -> None:
        if self._carrying is None and not self._is_held and not self._transport.is_closing():
            self._transport.resume_reading()

    def _put_off(self, piece: bytes | None) -> None:
        """Have a piece, or the end, wait for its turn; nothing more is read until all have had theirs."""
        self._waiting.append(piece)
        self._stop_reading()
        if self._carrying is None:
            self._carrying = self._line.link.tasks.create_task(self._carry_all())

    async def _carry_all(self) -> None:
        await self._line.joined.wait()
        while self._waiting:
            weather = await self._line.link.passage()
            piece = self._waiting.popleft()
            if piece is None:
                self._finish()
            else:
                await self._carry(piece, weather)
        self._carrying = None
        self._read_on()

    async def _carry(self, data: bytes, weather: Weather) -> None:
        """Pass ``data`` on as the weather has it."""
        match weather.mode:
            case Mode.DELAY:
                await asyncio.sleep(weather.seconds)
            case Mode.TRICKLE:
                await self._trickle(data, weather)
                return
            case Mode.HALF_CLOSE if self._is_reply:
                return
            case Mode.SWALLOW | Mode.TRUNCATE if self._is_reply:
                room = max(weather.after_bytes - self._line.replied, 0)
                self._line.replied += len(data)
                self._write(data[:room])
                if len(data) > room:
                    self._line.is_damaged = True
                    if weather.mode is Mode.TRUNCATE:
                        self._line.end(is_reset=True)
                return
        self._write(data)

    async def _trickle(self, data: bytes, weather: Weather) -> None:
        """Piece by piece, and the rest at once when the weather changes."""
        for start in range(0, len(data), weather.piece):
            if self._line.link.weather is not weather:
                self._write(data[start:])
                return
            self._write(data[start : start + weather.piece])
            await asyncio.sleep(weather.seconds)

    def _write(self, data: bytes) -> None:
        if not self._line.is_over and not (self._is_reply and self._line.is_half_closed):
            self.opposite._transport.write(data)

    def _finish(self) -> None:
        """The source has said everything."""
        self.opposite.say_end()
        if self._is_reply:  # whoever the server has left has nothing more to say to it
            self._line.end()


def _reset(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
    one.close()


async def serve() -> None:
    """Do what the lines of the standard input ask for."""
    links: dict[int, Link] = {}
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with asyncio.TaskGroup() as tasks:
        while line := await lines.readline():
            answer = _do(json.loads(line), links, tasks)
            await asyncio.sleep(0)  # what was ended is closed by then
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
        raise SystemExit


def _do(question: list[Any], links: dict[int, Link], tasks: asyncio.TaskGroup) -> int | None:
    match question:
        case ["open", target_port]:
            link = Link(target_port, tasks)
            links[link.port] = link
            return link.port
        case ["set", port, weather]:
            links[port].set(Weather(**{**weather, "mode": Mode(weather["mode"])}))
        case ["lead", port, target_port]:
            links[port].target_port = target_port
        case ["count", port]:
            return len(links[port].lines)
        case ["close", port]:
            if port in links:  # it may be closed more than once
                links.pop(port).close()
        case _:
            raise ValueError(f"cannot {question}")
    return None


if __name__ == "__main__":
    uvloop.run(serve())
