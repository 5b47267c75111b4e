"""A WebSocket over bare ASGI, as a conversation uses it: text in, documents out, a reason at the end."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from uuid_utils import uuid4

from api_shim.web.addresses import NO_PROXIES, Proxies
from api_shim.web.http import Disconnected, Receive, Request, Response, Scope, Send, problem_response
from api_shim.web.protocol import STALLED_SECONDS
from api_shim.web.router import Route
from models.errors import NotFound, Refusal, Transient, Unavailable, internal_problem
from models.job import to_json
from models.log import REQUEST_ID
from models.metrics import REFUSALS

_log = logging.getLogger("waybill.api")

UNSUPPORTED_DATA, INTERNAL_ERROR = 1003, 1011
_FRIENDLY = (1000, 1001, 1012)
_LONGEST_REASON = 123

SocketHandler = Callable[["WebSocket"], Awaitable[None]]


class Unreadable(Exception):
    """What came is no text. The socket is to be closed with :data:`UNSUPPORTED_DATA`."""


class WebSocket:
    """One WebSocket.

    Args:
        scope: ASGI's.
        receive: ASGI's.
        send: ASGI's.
        gates: What a request passes; here at the first message, which holds the token.
        proxies: Who is believed to say whose socket it passes on.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        gates: Sequence[Callable[..., Awaitable[None]]],
        proxies: Proxies = NO_PROXIES,
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._gates = gates
        self._proxies = proxies
        self.id = str(uuid4())

    async def serve(self, handlers: Mapping[str, SocketHandler]) -> None:
        """Let whoever speaks at this path speak; refuse where nobody does. Never raises."""
        REQUEST_ID.set(self.id)
        handler = handlers.get(self._scope["raw_path"].decode("latin-1"))
        try:
            await self._receive()  # websocket.connect
            if handler is None:
                await self._refuse(NotFound("There is no WebSocket at this path"))
                return
            await self._send({"type": "websocket.accept", "headers": [(b"x-request-id", self.id.encode())]})
            await handler(self)
        except Disconnected:
            return
        except Exception:
            _log.exception("a WebSocket conversation failed")
            await self.fail()

    async def authenticated(self, token: str, route: Route) -> Request:
        """The request that a client with this token would have sent, once it passed every gate.

        Raises:
            Refusal: A gate did not let it pass.
        """
        headers = [one for one in self._scope["headers"] if one[0] != b"authorization"]
        bearer = (b"authorization", b"Bearer " + token.encode("utf-8", "replace"))
        request = Request(
            {**self._scope, "method": "GET", "headers": [*headers, bearer]}, self._receive, self._proxies
        )
        request.id = self.id
        for gate in self._gates:
            await gate(request, route)
        return request

    async def text(self) -> str:
        """The next message.

        Raises:
            Disconnected: The peer has gone, or the socket is closed.
            Unreadable: It is binary.
        """
        message = await self._receive()
        if message["type"] != "websocket.receive":
            raise Disconnected
        text = message.get("text")
        if text is None:
            raise Unreadable
        return str(text)

    async def send(self, document: Any) -> None:
        """Send a document; ``document`` may be JSON text already (bytes).

        Raises:
            Disconnected: The peer has gone, or reads nothing.
        """
        body = document if isinstance(document, bytes) else to_json(document)
        await self._write({"type": "websocket.send", "text": body.decode()})

    async def tell(self, fault: Refusal | Transient) -> None:
        """Send an error in the contract's shape."""
        if isinstance(fault, Transient):
            fault = Unavailable("The database is away or busy", retry_after=1)
        REFUSALS.labels(fault.code).inc()
        await self.send(fault.problem(self.id))

    async def close(self, code: int, reason: str = "") -> None:
        """Close, and say why."""
        if code not in _FRIENDLY:
            REFUSALS.labels(f"WebSocket {code}").inc()
        reason = reason.encode()[:_LONGEST_REASON].decode(errors="ignore")
        await self._write({"type": "websocket.close", "code": code, "reason": reason})

    async def fail(self) -> None:
        """Something went wrong on our side: say so, as far as there is anybody to hear."""
        try:
            await self.send(internal_problem(self.id))
            await self.close(INTERNAL_ERROR, "internal error")
        except (Disconnected, RuntimeError):
            return

    async def _refuse(self, refusal: Refusal) -> None:
        """Answer the handshake itself with a problem."""
        REFUSALS.labels(refusal.code).inc()
        answer: Response = problem_response(refusal.problem(self.id))
        headers = [*answer.headers, (b"x-request-id", self.id.encode())]
        start = {"type": "websocket.http.response.start", "status": answer.status, "headers": headers}
        await self._write(start)
        await self._write({"type": "websocket.http.response.body", "body": answer.body})

    async def _write(self, message: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(STALLED_SECONDS):
                await self._send(message)
        except (OSError, TimeoutError) as error:  # uvicorn's ClientDisconnected is an OSError
            raise Disconnected from error
        except RuntimeError as error:  # closed meanwhile by the server, which stops
            raise Disconnected from error
