"""The ASGI application: finds the route, passes its gates, answers every error the same way, measures.

::

    route ─▶ gates (who asks, how often, is there room) ─▶ query ─▶ handler ─▶ answer
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress

from prometheus_client import Histogram
from uuid_utils import uuid4

from api_shim.web import security_headers
from api_shim.web.addresses import NO_PROXIES, Proxies
from api_shim.web.cors import Cors
from api_shim.web.http import (
    Disconnected,
    Header,
    Receive,
    Request,
    Response,
    Scope,
    Send,
    StreamResponse,
    problem_response,
)
from api_shim.web.protocol import STALLED_SECONDS, cut_off, write_whole
from api_shim.web.router import Route, Router
from api_shim.web.websocket import SocketHandler, WebSocket
from models.errors import (
    Contention,
    DatabaseUnavailable,
    MethodNotAllowed,
    PayloadTooLarge,
    Refusal,
    Transient,
    Unauthorized,
    Unavailable,
    internal_problem,
)
from models.log import REQUEST_ID
from models.metrics import HTTP_REQUEST_SECONDS, REFUSALS

Hook = Callable[[], Awaitable[None]]
Gate = Callable[[Request, Route], Awaitable[None]]
"""Lets a request pass, or raises a :class:`~models.errors.Refusal`; may add ``request.answer_headers``."""

_log = logging.getLogger("waybill.api")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{8,128}")
_CLOSE: Header = (b"connection", b"close")
_WITHOUT_LENGTH = (204, 304)
_UNROUTED = "(none)"


class App:
    """The application, ready for an ASGI server.

    Args:
        router: Every route.
        gates: What a request passes before its handler, in this order.
        cors: Which pages in browsers may call.
        proxies: Who is believed to say whose request it passes on.
        sockets: Who speaks with WebSockets, by path.
        on_start: Awaited before the first request.
        on_stop: Awaited after the last.
    """

    def __init__(
        self,
        router: Router,
        gates: Sequence[Gate] = (),
        *,
        cors: Cors | None = None,
        proxies: Proxies = NO_PROXIES,
        sockets: Mapping[str, SocketHandler] | None = None,
        on_start: Sequence[Hook] = (),
        on_stop: Sequence[Hook] = (),
    ) -> None:
        self.router = router
        self._gates = tuple(gates)
        self._cors = cors if cors is not None and not cors.is_closed else None
        self._proxies = proxies
        self._sockets = dict(sockets or {})
        self._on_start = tuple(on_start)
        self._on_stop = tuple(on_stop)
        self._timers: dict[tuple[str, str, int], Histogram] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket, or the server's start and stop."""
        if scope["type"] == "http":
            await self._serve(Request(scope, receive, self._proxies), send)
        elif scope["type"] == "websocket":
            await WebSocket(scope, receive, send, self._gates, self._proxies).serve(self._sockets)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)

    async def _serve(self, request: Request, send: Send) -> None:
        began = time.perf_counter()
        path = _UNROUTED
        request_id = request.headers.get(b"x-request-id", b"")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = str(uuid4()).encode()
        request.id = request_id.decode()
        REQUEST_ID.set(request.id)
        if self._cors is not None:
            request.answer_headers += self._cors.headers(request)
        try:
            route, request.parameters = self.router.find(request.method, request.path)
            path = route.path
            for gate in self._gates:
                await gate(request, route)
            request.take_query(route.query)
            response = await route.handle(request)
        except Refusal as refusal:
            response = self._preflight(request, refusal) or _refused(refusal, request)
        except Transient as fault:
            response = _unavailable(fault, request)
        except Disconnected:
            return
        except Exception:
            _log.exception("a request failed", extra={"method": request.method, "route": path})
            response = problem_response(internal_problem(request.id))
        headers = [*response.headers, *request.answer_headers, (b"x-request-id", request_id)]
        headers += security_headers.missing(response.headers)
        if isinstance(response, StreamResponse):
            # What is measured is the time to its beginning: how long it is listened to says nothing.
            self._record(path, request.method, response, time.perf_counter() - began)
            await self._stream(response, headers, request, send)
            return
        await self._answer(response, headers, send)
        self._record(path, request.method, response, time.perf_counter() - began)

    def _preflight(self, request: Request, refusal: Refusal) -> Response | None:
        """The answer to a browser's question whether it may send this, where it may."""
        if self._cors is None or not isinstance(refusal, MethodNotAllowed):
            return None
        return self._cors.preflight(request, refusal.allow)

    async def _answer(self, response: Response, headers: list[Header], send: Send) -> None:
        body = response.body
        if response.status not in _WITHOUT_LENGTH:
            headers.append((b"content-length", b"%d" % len(body)))
        # What closes the connection, uvicorn must see for itself.
        if _CLOSE in response.headers or not write_whole(send, response.status, headers, body):
            await send({"type": "http.response.start", "status": response.status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    async def _stream(
        self, response: StreamResponse, headers: list[Header], request: Request, send: Send
    ) -> None:
        """Send chunk after chunk; stop at once where the caller leaves, and where it reads nothing."""
        tasks: list[asyncio.Future[None]] = []
        try:
            await send({"type": "http.response.start", "status": response.status, "headers": headers})
            tasks.append(asyncio.ensure_future(_send_chunks(response, request.method, send)))
            tasks.append(asyncio.ensure_future(request.gone()))
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:  # also where the server's patience ends and this task is cancelled
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            await response.close()

    def _record(self, path: str, method: str, response: Response, seconds: float) -> None:
        if path == _UNROUTED:
            method = _UNROUTED  # whatever a stranger wrote there must not become a label
        key = (path, method, response.status)
        timer = self._timers.get(key)
        if timer is None:
            timer = self._timers[key] = HTTP_REQUEST_SECONDS.labels(path, method, response.status)
        timer.observe(seconds)
        if _log.isEnabledFor(logging.DEBUG):
            milliseconds = round(seconds * 1000, 3)
            _log.debug(
                "answered",
                extra={"method": method, "route": path, "status": response.status, "ms": milliseconds},
            )

    async def _live(self, receive: Receive, send: Send) -> None:
        """The server's start and stop (ASGI lifespan)."""
        while True:
            message = await receive()
            is_start = message["type"] == "lifespan.startup"
            phase = "startup" if is_start else "shutdown"
            try:
                for hook in self._on_start if is_start else self._on_stop:
                    await hook()
            except Exception as error:
                _log.exception("the API could not %s", "start" if is_start else "stop cleanly")
                await send({"type": f"lifespan.{phase}.failed", "message": str(error)})
                return
            await send({"type": f"lifespan.{phase}.complete"})
            if not is_start:
                return


async def _send_chunks(response: StreamResponse, method: str, send: Send) -> None:
    try:
        if method != "HEAD":
            async for chunk in response.chunks:
                async with asyncio.timeout(STALLED_SECONDS):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await asyncio.sleep(0)  # sending to one who left never waits: let it be noticed
        await send({"type": "http.response.body", "body": b""})
    except TimeoutError:
        cut_off(send)
    except Exception:
        _log.exception("a stream broke off")
        cut_off(send)  # the caller must not take it for the end


def _refused(refusal: Refusal, request: Request) -> Response:
    """The one place where a refusal becomes a problem document and its headers."""
    REFUSALS.labels(refusal.code).inc()
    response = problem_response(refusal.problem(request.id))
    if isinstance(refusal, Unauthorized):
        reason = b', error="invalid_token"' if b"authorization" in request.headers else b""
        response.headers.append((b"www-authenticate", b'Bearer realm="waybill"' + reason))
    elif isinstance(refusal, MethodNotAllowed):
        response.headers.append((b"allow", ", ".join(refusal.allow).encode()))
    elif isinstance(refusal, PayloadTooLarge):
        response.headers.append(_CLOSE)  # the rest of the body is not worth reading
    return response


def _unavailable(fault: Transient, request: Request) -> Response:
    message = "The database is busy" if isinstance(fault, Contention) else "A dependency is away"
    if isinstance(fault, DatabaseUnavailable):
        message = "The database is away"
    _log.warning("a request was refused", extra={"reason": str(fault)})
    return problem_response(Unavailable(message, retry_after=1).problem(request.id))
