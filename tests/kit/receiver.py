"""A real webhook receiver for tests: HTTP or HTTPS on loopback, records every request, misbehaves on demand.

A behaviour is a function that is handed the open exchange and answers in its own way, or not at all::

    with WebhookReceiver() as receiver:
        receiver.will(answer(503), hang(), answer(204))   # then 204 for ever
        ...
        receiver.wait_for(3)
        receiver.requests[0].verify(secret)
"""

import socket
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import repeat
from threading import Condition, Event, Thread
from typing import Any

from standardwebhooks import Webhook


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """One request as it came in. Header names are lower-case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    def verify(self, secret: str) -> Any:
        """The JSON body, if the signature holds; else ``standardwebhooks.WebhookVerificationError``."""
        return Webhook(secret).verify(self.body, dict(self.headers))


class Exchange:
    """An open connection with its request read: what a behaviour works on."""

    def __init__(self, connection: socket.socket, is_stopping: Event) -> None:
        self._connection = connection
        self._is_stopping = is_stopping

    def write(self, data: bytes) -> None:
        self._connection.sendall(data)

    def rest(self, seconds: float | None = None) -> None:
        """Wait: so long, or until the receiver stops."""
        self._is_stopping.wait(seconds)

    @property
    def is_over(self) -> bool:
        """Whether the receiver is stopping."""
        return self._is_stopping.is_set()

    def reset(self) -> None:
        """End the connection with a RST instead of a FIN."""
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")


Behaviour = Callable[[Exchange], None]


def answer(
    status: int = 204, body: bytes = b"", headers: Mapping[str, str] | None = None, delay_seconds: float = 0
) -> Behaviour:
    """A well-formed answer, perhaps late, and the last on its connection."""

    def behave(exchange: Exchange) -> None:
        exchange.rest(delay_seconds)
        framing = {"Content-Length": str(len(body)), "Connection": "close"}
        exchange.write(_head(status, {**(headers or {}), **framing}) + body)

    return behave


def redirect(location: str, status: int = 302) -> Behaviour:
    """Point elsewhere."""
    return answer(status, headers={"Location": location})


def raw(*pieces: bytes, pause_seconds: float = 0) -> Behaviour:
    """Exactly these bytes, with pauses between the pieces, then the end of the connection."""

    def behave(exchange: Exchange) -> None:
        for piece in pieces:
            if exchange.is_over:
                return
            exchange.write(piece)
            exchange.rest(pause_seconds)

    return behave


def trickle_head(pause_seconds: float) -> Behaviour:
    """A status line, then for ever one byte of a header at a time."""
    return _for_ever(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x", pause_seconds)


def trickle_body(pause_seconds: float, status: int = 200) -> Behaviour:
    """A whole head, then for ever one byte of the body at a time."""
    return _for_ever(_head(status, {"Content-Length": "1000000"}), b"x", pause_seconds)


def endless_body(status: int = 200) -> Behaviour:
    """A whole head, then a body that never ends, as fast as it is taken."""
    return _for_ever(_head(status, {"Connection": "close"}), b"x" * 65536, 0)


def endless_head() -> Behaviour:
    """A status line, then headers without end, as fast as they are taken."""
    return _for_ever(b"HTTP/1.1 200 OK\r\n", b"X-More: " + b"y" * 1000 + b"\r\n", 0)


def hang() -> Behaviour:
    """Say nothing and keep the connection open."""
    return lambda exchange: exchange.rest()


def hold(until: Event) -> Behaviour:
    """Answer well, but not before ``until``."""

    def behave(exchange: Exchange) -> None:
        until.wait(10)
        answer()(exchange)

    return behave


def close() -> Behaviour:
    """Hang up without a word."""
    return lambda exchange: None


def reset() -> Behaviour:
    """Hang up rudely (RST)."""
    return lambda exchange: exchange.reset()


def _for_ever(start: bytes, piece: bytes, pause_seconds: float) -> Behaviour:
    def behave(exchange: Exchange) -> None:
        exchange.write(start)
        for each in repeat(piece):
            if exchange.is_over:
                return
            exchange.write(each)
            exchange.rest(pause_seconds)

    return behave


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Scripted", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, receiver: "WebhookReceiver", tls: ssl.SSLContext | None, host: str) -> None:
        self.receiver = receiver
        self.tls = tls
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A sender that hangs up, or refuses our certificate, is what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    """Reads one request per connection and hands the exchange to the next behaviour."""

    server: _Server

    def setup(self) -> None:
        if self.server.tls is not None:  # here and not in accept: a slow handshake must not stop the others
            self.request = self.server.tls.wrap_socket(self.request, server_side=True)
        super().setup()

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0)) if self.server.receiver.reads_body else 0
        body = self.rfile.read(length)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.close_connection = True
        behaviour = self.server.receiver.take(ReceivedRequest(self.command, self.path, headers, body))
        behaviour(Exchange(self.request, self.server.receiver.is_stopping))

    do_GET = do_POST  # noqa: N815 -- what a followed redirect would send

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the requests are recorded."""


class WebhookReceiver:
    """The receiver; a context manager. Answers 204 where nothing else was asked for.

    Args:
        tls: Serve HTTPS with this certificate; None: plain HTTP.
        host: A loopback address to listen on.
        reads_body: False: answer and hang up as soon as the headers are in, whatever still comes.
    """

    def __init__(
        self, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1", *, reads_body: bool = True
    ) -> None:
        self.requests: list[ReceivedRequest] = []
        self.reads_body = reads_body
        self.is_stopping = Event()
        self._behaviours: deque[Behaviour] = deque()
        self._otherwise = answer(204)
        self._changed = Condition()
        self._server = _Server(self, tls, host)
        self._scheme = "http" if tls is None else "https"
        self._thread = Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> "WebhookReceiver":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def url(self, path: str = "/hook", host: str = "127.0.0.1") -> str:
        """Its URL, under that host name."""
        return f"{self._scheme}://{host}:{self.port}{path}"

    def will(self, *behaviours: Behaviour) -> None:
        """Behave so with the next requests, one each, in this order."""
        self._behaviours.extend(behaviours)

    def will_always(self, behaviour: Behaviour) -> None:
        """Behave so once nothing more particular is asked for."""
        self._otherwise = behaviour

    def take(self, request: ReceivedRequest) -> Behaviour:
        """Record a request and say how to behave (called by the handler)."""
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
            return self._behaviours.popleft() if self._behaviours else self._otherwise

    def wait_for(self, count: int, timeout_seconds: float = 10) -> list[ReceivedRequest]:
        """Wait until that many requests came in; AssertionError if they do not."""
        with self._changed:
            arrived = self._changed.wait_for(lambda: len(self.requests) >= count, timeout_seconds)
            assert arrived, f"{len(self.requests)} of {count} requests within {timeout_seconds} s"
            return list(self.requests)
