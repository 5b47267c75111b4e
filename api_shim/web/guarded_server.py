"""The HTTP server and its end: it lets go of its clients so that none of them meets a reset.

::

    SIGTERM ─▶ draining ────────▶ deaf ─────▶ leaving ─────────────────▶ gone
               /health/ready 503  no new      long-polls and streams end;
               every answer says  connection  what is asked is answered;
               close                          idle connections are closed

While it is draining it takes in whatever comes, for a load balancer that has not noticed yet.
"""

import asyncio
import ctypes
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

from uvicorn import Config, Server

from api_shim.web.protocol import DrainableState, GuardedProtocol, GuardedWebSocket
from models.metrics import INVALID_REQUESTS

PATIENCE_SECONDS = 8.0
"""How long requests may take that are under way when the last one has been taken in."""

IDLE_SECONDS = 1.0
"""How long an idle connection is kept, from the signal on: its next answer says close, which is better."""

_GOODBYE_SECONDS = 0.2
_LINGER_SECONDS = 1.0
_QUEUE_SECONDS = 0.02
_LOOK_SECONDS = 0.05
_TICKS_A_SWEEP = 10
_Connection = GuardedProtocol | GuardedWebSocket


class GuardedServer(Server):
    """uvicorn's server; it closes connections that are late, and drains before it ends.

    Args:
        config: uvicorn's, with :class:`GuardedProtocol` and :class:`GuardedWebSocket`.
        on_signal: Called in the handler of each signal to stop.
        on_draining: Called on the event loop when the first one came, before anything closes.
        on_leaving: Called when nobody new comes in any more: whoever waits should be sent home.
        lead_seconds: How long it goes on taking connections after the signal.
        patience_seconds: How long requests under way may take after that.
    """

    def __init__(
        self,
        config: Config,
        *,
        on_signal: Callable[[], object] = lambda: None,
        on_draining: Callable[[], None] = lambda: None,
        on_leaving: Callable[[], None] = lambda: None,
        lead_seconds: float = 0.0,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        super().__init__(config)
        self.server_state = self._state = DrainableState()
        self._on_signal = on_signal
        self._on_draining = on_draining
        self._on_leaving = on_leaving
        self._lead_seconds = lead_seconds
        self._patience_seconds = patience_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Uvicorn's handler, which leaves the rest to the event loop; that may stand still."""
        self._on_signal()
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Once a second, close who is late."""
        if counter % _TICKS_A_SWEEP == 0:
            now = time.monotonic()
            for connection in list(self._state.connections):
                if isinstance(connection, GuardedProtocol) and connection.is_late(now):
                    INVALID_REQUESTS.labels("too_slow").inc()
                    connection.transport.close()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: Any = None) -> None:
        """Drain, and end. In place of uvicorn's, which closes what is idle at once, and cancels by a 500."""
        idle_until = time.monotonic() + max(IDLE_SECONDS, self._lead_seconds)
        self._on_draining()
        self._state.is_draining = True
        for connection in self._connections():
            if isinstance(connection, GuardedProtocol):
                connection.drain()
        await asyncio.sleep(self._lead_seconds)
        await self._stop_listening(sockets or [])
        self._on_leaving()
        await self._see_off(idle_until)
        await self._break_off()
        await self.lifespan.shutdown()

    def _connections(self) -> list[_Connection]:
        return [one for one in self._state.connections if isinstance(one, _Connection)]

    async def _stop_listening(self, sockets: list[socket.socket]) -> None:
        """Take in who stands in the queue, then listen no more: whoever still stood there would be reset."""
        for server in self.servers:
            for listener in server.sockets:
                _admit_no_handshake(listener.fileno())
        await asyncio.sleep(_QUEUE_SECONDS)
        for server in self.servers:
            server.close()
        for one in sockets:
            one.close()

    async def _see_off(self, idle_until: float) -> None:
        """Wait until everybody is answered and gone, for as long as patience lasts."""
        began = time.monotonic()
        while self._state.connections or self._state.tasks:
            await asyncio.sleep(_LOOK_SECONDS)
            now = time.monotonic()
            if now - began > self._patience_seconds:
                return
            for connection in self._connections():
                if isinstance(connection, GuardedWebSocket):
                    if now - began > _GOODBYE_SECONDS:
                        connection.leave()
                elif now > idle_until and connection.is_idle and not _has_news(connection.transport):
                    connection.leave()
            if now - max(began, idle_until) > _LINGER_SECONDS and self._are_seen_off():
                return

    async def _break_off(self) -> None:
        """Refuse what is not answered yet; close what is still open."""
        if self._are_seen_off():
            return
        for connection in self._connections():
            connection.break_off()
        until = time.monotonic() + _LINGER_SECONDS
        while self._state.connections and time.monotonic() < until:
            await asyncio.sleep(_LOOK_SECONDS)
        tasks = list(self._state.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_LINGER_SECONDS)
        for connection in self._connections():
            connection.transport.close()
        await asyncio.sleep(0)

    def _are_seen_off(self) -> bool:
        return not self._state.tasks and all(map(_is_seen_off, self._connections()))


def _is_seen_off(connection: _Connection) -> bool:
    """Whether it only waits for the other side to close."""
    return connection.has_left if isinstance(connection, GuardedProtocol) else connection.close_sent


def _has_news(transport: asyncio.Transport) -> bool:
    """Whether something has come that the event loop has not read yet: it is to be answered first."""
    try:
        poll = select.poll()
        poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))
    except (OSError, ValueError, AttributeError):
        return False


_SO_ATTACH_FILTER = 26
_NO_SYN = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # load the flags
        (0x45, 0, 1, 0x02),  # is SYN among them?
        (0x06, 0, 0, 0),  # then drop the packet
        (0x06, 0, 0, 0xFFFFFFFF),  # else let it pass
    )
)


def _admit_no_handshake(listener: int) -> None:
    """Let nobody new into a listener's queue, so that it can be emptied before it is closed.

    Whoever begins a handshake meanwhile begins it again a second later and is refused, which is safe to try
    elsewhere; one who stood in the queue would be reset with his request sent. Linux only.
    """
    if sys.platform != "linux":
        return
    program = ctypes.create_string_buffer(_NO_SYN)
    with suppress(OSError), socket.socket(fileno=os.dup(listener)) as same:
        same.setsockopt(
            socket.SOL_SOCKET,
            _SO_ATTACH_FILTER,
            struct.pack("HL", len(_NO_SYN) // 8, ctypes.addressof(program)),
        )
