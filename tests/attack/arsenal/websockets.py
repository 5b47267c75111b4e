"""WebSocket clients that break the stream's rules: no token, a foreign one, wrong frames, foreign jobs."""

import json
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.attack.arsenal.tokens import FORGED
from tests.attack.attack import Attack, statuses
from tests.attack.reply import CLOSED, Reply
from tests.attack.target import Target

_UNKNOWN = "018f3c1e-0000-7000-8000-000000000000"
_POLICY = (1003, 1007, 1008, 1009)
_FIRST: dict[str, Any] = {
    "no JSON": "hello",
    "an array": [],
    "no token": {"subscribe": "mine"},
    "token null": {"token": None},
    "token a number": {"token": 5},
    "a NUL": '{"token":"a\\u0000"}',
    "twice": '{"token":"a","token":"b"}',
    "a depth bomb": '{"token":' + "[" * 5000,
}
_LATER: dict[str, Any] = {
    "no JSON": "hello",
    "nothing known": {"x": 1},
    "subscribe a number": {"subscribe": 5},
    "subscribe nothing": {"subscribe": []},
    "subscribe no ids": {"subscribe": ["x", None]},
    "subscribe everybody's": {"subscribe": "all"},
    "after a text": {"subscribe": "mine", "after": "1"},
    "after negative": {"subscribe": "mine", "after": -1},
    "an unknown job": {"subscribe": [_UNKNOWN]},
}


def attacks() -> Iterator[Attack]:
    """Each on a connection of its own; statuses are close codes, or 0 for a problem on an open connection."""
    for name, message in _FIRST.items():
        yield _attack(
            f"first message: {name}", _first(lambda _, message=message: message), _POLICY, closes=True
        )
    for name, forge in FORGED.items():
        token: Callable[[Target], Any] = lambda target, forge=forge: {"token": forge(target)}  # noqa: E731
        yield _attack(f"token: {name}", _first(token), (), closes=True)
    yield _attack("token of 1 MB", _first(lambda _: {"token": "x" * 2**20}), _POLICY, closes=True)
    yield _attack("binary first", _first(lambda _: b"\x00\xff"), _POLICY, closes=True)
    for name, message in _LATER.items():
        yield _attack(f"later: {name}", _later(lambda _, message=message: message), _POLICY, closes=False)
    foreign = _later(lambda target: {"subscribe": [target.places["foreign_job"]]})
    yield _attack("later: somebody else's job", foreign, _POLICY, closes=False)
    yield _attack("another path", _elsewhere, (), closes=False)
    yield _attack("silent for ever", _first(lambda _: None), (), closes=True, is_slow=True)
    yield _attack("a frame without its mask", _unmasked, (), closes=True)


def _attack(
    name: str,
    send: Callable[[Target], int],
    codes: tuple[int, ...],
    *,
    closes: bool,
    is_slow: bool = False,
) -> Attack:
    """Judge by close code: one of ``codes`` or of our own (4400 to 4499); 0 is right where nothing closes."""

    def judged(target: Target) -> Reply:
        code = send(target)
        right = code in codes or 4400 <= code < 4500 or (code == 0 and not closes)
        if not right:
            raise AssertionError(f"close code {code}")
        return CLOSED

    return Attack("WebSockets", name, judged, statuses(0), is_slow)


def _opened(target: Target, path: str = "/api/v1/stream") -> ClientConnection:
    return connect(f"ws://127.0.0.1:{target.port}{path}", open_timeout=10, close_timeout=2, proxy=None)


def _text(message: Any) -> str | bytes:
    return message if isinstance(message, str | bytes) else json.dumps(message)


def _first(message: Callable[[Target], Any]) -> Callable[[Target], int]:
    def send(target: Target) -> int:
        with _opened(target) as link:
            given = message(target)
            try:
                if given is not None:
                    link.send(_text(given))
                while True:
                    frame = json.loads(link.recv(timeout=15))
                    _must_be_problem(frame)
            except ConnectionClosed as closed:
                return closed.rcvd.code if closed.rcvd is not None else 1006

    return send


def _later(message: Callable[[Target], Any]) -> Callable[[Target], int]:
    """After a good token: answered by a problem, the connection stays."""

    def send(target: Target) -> int:
        with _opened(target) as link:
            link.send(json.dumps({"token": target.tokens["user"]}))
            link.send(_text(message(target)))
            try:
                _must_be_problem(json.loads(link.recv(timeout=10)))
                link.send(json.dumps({"subscribe": [target.places["job"]]}))
                frame = json.loads(link.recv(timeout=10))
            except ConnectionClosed as closed:
                return closed.rcvd.code if closed.rcvd is not None else 1006
            if frame["job"]["id"] != target.places["job"]:
                raise AssertionError(f"the stream tells of {frame}")
            return 0

    return send


def _must_be_problem(frame: Any) -> None:
    problem = frame.get("error", frame)
    inner = problem if isinstance(problem, dict) else frame
    if not {"status", "message"} <= set(inner):
        raise AssertionError(f"no problem: {frame}")


def _elsewhere(target: Target) -> int:
    try:
        _opened(target, "/api/v1/entities").close()
    except InvalidStatus as refused:
        return 0 if refused.response.status_code in (400, 403, 404, 405) else refused.response.status_code
    return 1


def _unmasked(target: Target) -> int:
    """Bytes on the socket: a client's frame must be masked (RFC 6455, 5.1), or the connection ends."""
    head = (
        b"GET /api/v1/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    received = b""
    with socket.create_connection(("127.0.0.1", target.port), timeout=10) as link:
        link.sendall(head)
        while b"\r\n\r\n" not in received:  # what comes with the handshake is not read as a frame
            chunk = link.recv(4096)
            if not chunk:
                return 1
            received += chunk
        link.sendall(b"\x81\x02{}")
        while chunk := link.recv(4096):  # until it closes
            received += chunk
    frames = received.partition(b"\r\n\r\n")[2]
    closing = frames.find(b"\x88")
    if closing < 0:
        return 4400  # closed without a word
    (code,) = struct.unpack("!H", frames[closing + 2 : closing + 4])
    return 4400 if code == 1002 else int(code)
