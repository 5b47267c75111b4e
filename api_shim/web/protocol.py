"""HTTP at the socket: uvicorn's protocol with limits on size and time, and refusals in our own words.

uvicorn's httptools protocol bounds neither the head of a request, nor what comes around the chunks of
its body, nor the time that one may take to arrive, and leaves a connection open that never says
anything. All are bounded here, at next to no cost per request: a clock is noted, and one sweep a
second looks for those who are late. It also takes trailers for headers, and a request without a host
or with two of them: a proxy before us may have looked at another one.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from api_shim.web import security_headers
from api_shim.web.http import Header
from models.errors import PROBLEM_MEDIA_TYPE, Invalid, Refusal, Unavailable
from models.job import to_json
from models.metrics import INVALID_REQUESTS

MAX_HEAD_BYTES = 32 * 1024
MAX_REQUEST_BYTES = 16 * 1024 * 1024
"""Of one request as it comes, chunk sizes, extensions and trailers included: twice the largest body."""

MAX_MESSAGE_BYTES = 64 * 1024
"""Of one WebSocket message."""

MAX_REQUEST_SECONDS = 20.0
"""How long one request, head and body, may take to arrive."""

STALLED_SECONDS = 30.0
"""How long one piece of a stream may wait for a caller who does not read."""

_STOPPING = Unavailable(
    "This process stops, and your request was not finished: send it again, with its Idempotency-Key",
    retry_after=1,
)
_ALWAYS = "".join(f"{name.decode()}: {value.decode()}\r\n" for name, value in security_headers.missing(()))


class DrainableState(ServerState):
    """What the connections of one server share.

    Attributes:
        is_draining: Whether every answer is the last one on its connection, because the server is to stop.
    """

    is_draining = False


class GuardedProtocol(HttpToolsProtocol):
    """One connection."""

    def connection_made(self, transport: Any) -> None:
        """The clock runs from the first moment."""
        super().connection_made(transport)
        self.has_left = False
        self._head_bytes = 0
        self._request_bytes = 0
        self._is_in_head = True
        self.began: float | None = time.monotonic()

    def data_received(self, data: bytes) -> None:
        """Take what came, as long as the head and the whole stay within their limits."""
        if self.has_left:  # it crossed our goodbye: nobody can answer it any more, so nobody shall do it
            return
        if self.began is None:
            self.began = time.monotonic()
        if self._is_in_head:
            self._head_bytes += len(data)
        self._request_bytes += len(data)
        if self._request_bytes > MAX_REQUEST_BYTES:
            if not self.transport.is_closing():
                self._refuse(
                    "request_too_large", f"The request is over {MAX_REQUEST_BYTES} bytes as it comes"
                )
            return
        super().data_received(data)
        if self._is_in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse("head_too_large", f"The request's head is over {MAX_HEAD_BYTES} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header. What comes after the body is none, whatever it is called (RFC 9110, 6.5.1)."""
        if self._is_in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole."""
        is_too_large = self._head_bytes > MAX_HEAD_BYTES and self._head_size() > MAX_HEAD_BYTES
        self._is_in_head = False
        self._head_bytes = 0
        if is_too_large:
            raise ValueError("the head is too large")
        hosts = [name for name, _ in self.headers].count(b"host")
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):
            raise ValueError("not one host (RFC 9112, 3.2)")
        super().on_headers_complete()
        if isinstance(self.server_state, DrainableState) and self.server_state.is_draining:
            self.drain()

    def on_message_complete(self) -> None:
        """The request is whole: nobody is late any more."""
        super().on_message_complete()
        self._is_in_head = True
        self._head_bytes = 0
        self._request_bytes = 0
        self.began = None

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP: say so as every other refusal is said, and close."""
        self._refuse("malformed", "The request is not valid HTTP, or its head is too large")

    def is_late(self, now: float) -> bool:
        """Whether a request has been arriving for too long."""
        return self.began is not None and now - self.began > MAX_REQUEST_SECONDS

    # ---- at the end ----------------------------------------------------------------------

    def drain(self) -> None:
        """Let the answer to what was asked last be the last one, and say so (``Connection: close``)."""
        if self.cycle is not None:  # the latest: those of a pipeline are answered before it
            self.cycle.keep_alive = False

    @property
    def is_idle(self) -> bool:
        """Whether nothing of a request has come that is not answered."""
        return self._request_bytes == 0 and (self.cycle is None or self.cycle.response_complete)

    def leave(self) -> None:
        """Say goodbye and go on reading, so that what is on its way is not answered by a reset."""
        if not self.has_left and not self.transport.is_closing():
            self.has_left = True
            self.transport.write_eof()

    def break_off(self) -> None:
        """Refuse what could not be answered in time, and leave."""
        if self.has_left or self.transport.is_closing():
            return
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if cycle.response_started:
                self.transport.close()
                return
            cycle.response_started = cycle.disconnected = True
            cycle.message_event.set()
        self._answer(_STOPPING)
        self.leave()

    # ---- answers of the protocol's own ---------------------------------------------------

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _refuse(self, reason: str, message: str) -> None:
        INVALID_REQUESTS.labels(reason).inc()
        if not self.transport.is_closing():
            self._answer(Invalid(message))
            self.transport.close()

    def _answer(self, refusal: Refusal) -> None:
        request_id = str(uuid4())
        body = to_json(refusal.problem(request_id))
        wait = "" if refusal.retry_after is None else f"retry-after: {refusal.retry_after}\r\n"
        head = (
            f"content-type: {PROBLEM_MEDIA_TYPE}\r\nx-request-id: {request_id}\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n{wait}{_ALWAYS}\r\n"
        )
        self.transport.write(STATUS_LINE[refusal.status] + head.encode() + body)


class GuardedWebSocket(WebSocketsSansIOProtocol):
    """One WebSocket. It does not write what was asked for to the log: a token may stand in it by mistake."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.logger = self.conn.logger = _SILENT

    def leave(self) -> None:
        """Close with 1012 (service restart), unless it is closed already and only waits for the echo."""
        if self.handshake_complete and not self.close_sent:
            self.shutdown()

    def break_off(self) -> None:
        """Close, echo or not."""
        self.shutdown()


_SILENT = logging.getLogger("waybill.websocket")
_SILENT.setLevel(logging.CRITICAL)  # a client that leaves during its handshake is no error of ours


def write_whole(send: Any, status: int, headers: Sequence[Header], body: bytes) -> bool:
    """Write a whole answer at once, where ``send`` is uvicorn's and the connection is in its usual state.

    uvicorn's own ``send`` takes two messages and searches every header twice for characters that no
    header of ours can hold: a fifth of the edge's time. It still does everything unusual.

    Returns:
        False where nothing was written: answer by ``send`` then.
    """
    cycle = getattr(send, "__self__", None)
    if (
        type(cycle) is not RequestResponseCycle
        or cycle.disconnected
        or cycle.response_started
        or not cycle.keep_alive
        or cycle.flow.write_paused
        or cycle.scope["method"] == "HEAD"
    ):
        return False
    parts = [STATUS_LINE[status]]
    for name, value in (*cycle.default_headers, *headers):
        parts += (name, b": ", value, b"\r\n")
    parts += (b"\r\n", body)
    cycle.response_started = True
    cycle.waiting_for_100_continue = False
    cycle.transport.write(b"".join(parts))
    cycle.response_complete = True
    cycle.message_event.set()
    cycle.on_response()
    return True


def cut_off(send: Any) -> None:
    """Break the connection off, where ``send`` is uvicorn's: what was sent last was not the end."""
    cycle = getattr(send, "__self__", None)
    if type(cycle) is RequestResponseCycle:
        cycle.disconnected = True
        cycle.transport.abort()
        cycle.message_event.set()
