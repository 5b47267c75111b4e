"""Streams over a real socket: callers who leave, who do not read, who meet a fault, who ask for the head."""

import socket
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from uvicorn import Config

from api_shim.web.app import App
from api_shim.web.guarded_server import GuardedServer
from api_shim.web.http import Request, Response, StreamResponse
from api_shim.web.protocol import GuardedProtocol
from api_shim.web.router import Route, Router
from tests.kit.waiting import wait_until

PIECE, END = b"x" * 65_536, b"0\r\n\r\n"


@dataclass
class Source:
    """Streams without end; knows how each of its streams ended."""

    begun: int = 0
    ended: int = 0
    closed: int = 0
    port: int = 0
    faults: list[Exception] = field(default_factory=list)

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        self.begun += 1
        try:
            while True:
                yield PIECE
                if self.faults:
                    raise self.faults.pop()
        finally:
            self.ended += 1

    def _close(self) -> None:
        self.closed += 1

    async def get(self, request: Request) -> Response:
        return StreamResponse(200, self._chunks(), on_close=self._close)

    def ask(self, method: str = "GET") -> socket.socket:
        connection = socket.socket()
        connection.settimeout(10)
        connection.connect(("127.0.0.1", self.port))
        connection.sendall(f"{method} /stream HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return connection

    @property
    def is_let_go(self) -> bool:
        return self.begun == self.ended and self.closed > 0


@pytest.fixture
def source() -> Iterator[Source]:
    source = Source()
    route = Route(
        method="GET",
        path="/stream",
        handle=source.get,
        operation_id="x",
        summary="x",
        tag="x",
        is_public=True,
    )
    config = Config(
        App(Router([route])), port=0, http=GuardedProtocol, ws="none", log_config=None, lifespan="off"
    )
    server = GuardedServer(config, patience_seconds=0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started, what="the server has started")
    source.port = server.servers[0].sockets[0].getsockname()[1]
    yield source
    server.should_exit = True
    thread.join(10)


def _rest(connection: socket.socket, most: int = 50_000_000) -> bytes:
    """What comes until the end, or until it is ``most``."""
    received = bytearray()
    with suppress(ConnectionResetError):
        while len(received) < most and (chunk := connection.recv(65_536)):
            received += chunk
    return bytes(received)


def test_caller_who_leaves_is_let_go_of(source: Source) -> None:
    connection = source.ask()
    assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
    connection.close()
    wait_until(lambda: source.is_let_go, what="the stream has ended")


def test_caller_who_does_not_read_is_cut_off(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api_shim.web.app.STALLED_SECONDS", 0.3)
    with source.ask() as connection:
        wait_until(lambda: source.is_let_go, what="the stream has ended", timeout_seconds=10)
        assert not _rest(connection).endswith(END)


def test_caller_who_reads_slowly_is_not(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api_shim.web.app.STALLED_SECONDS", 4)
    until = time.monotonic() + 6  # longer than that, as a whole
    with source.ask() as connection:
        while time.monotonic() < until:
            assert connection.recv(65_536)
            time.sleep(0.02)
        assert not source.is_let_go
    wait_until(lambda: source.is_let_go, what="the stream has ended")


def test_fault_in_the_middle_does_not_look_like_the_end(source: Source) -> None:
    source.faults.append(RuntimeError("planted"))
    with source.ask() as connection:
        received = _rest(connection)
        assert not received.endswith(END)
        assert b"planted" not in received
    wait_until(lambda: source.is_let_go, what="the stream has ended")


def test_head_begins_no_stream_and_keeps_the_connection(
    source: Source,
) -> None:
    connection = source.ask("HEAD")
    head = connection.recv(10_000)
    assert head.endswith(b"\r\n\r\n")
    wait_until(lambda: source.closed == 1, what="it was closed")
    assert source.begun == 0
    connection.sendall(b"HEAD /stream HTTP/1.1\r\nHost: x\r\n\r\n")
    assert connection.recv(10_000).startswith(b"HTTP/1.1 200 ")
