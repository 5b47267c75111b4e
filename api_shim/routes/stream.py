"""WebSocket ``/api/v1/stream``: the transitions of many jobs over one connection, in one order.

::

    client                                        server
    {"token": "<access token>"}      within 5 s
    {"subscribe": ["<job id>", …]}        ─────▶  {"sequence": n, "job": {…}}    the present state of each,
                                                  {"sequence": n, "job": {…}}    then every transition
    {"subscribe": "mine", "after": n}     ─────▶  everything of one's own jobs after n, then as it happens

Subscriptions add up. What is wrong is answered by an error in the contract's shape and refuses only
itself. Frames of one subscription come in the order of ``sequence``, none twice, none left out: the
highest one seen is the ``after`` to come back with. Close codes are in :class:`Code`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from enum import IntEnum
from typing import Any
from uuid import UUID

from api_shim.changes.feed import Follower
from api_shim.changes.hub import Hub
from api_shim.gate.authentication import Authentication
from api_shim.routes.jobs import may_see
from api_shim.routes.outcomes import BASE
from api_shim.web.http import Request, Response
from api_shim.web.router import Limit, Route
from api_shim.web.websocket import UNSUPPORTED_DATA, Unreadable, WebSocket
from models import strict_json
from models.errors import (
    Detail,
    Invalid,
    NotFound,
    RateLimited,
    Refusal,
    Transient,
    Unauthorized,
    Unavailable,
)
from models.ids import parse_id
from models.job import Job

PATH = f"{BASE}/stream"
TOKEN_SECONDS = 5.0
RECHECK_SECONDS = 5.0
MOST_JOBS = 1_000
MOST_UNAUTHENTICATED = 500
_MOST_MISTAKES = 10
_MOST_SEQUENCE = 2**63 - 1
_RETRY_SECONDS = 1.0

Find = Callable[[UUID], Awaitable[Job | None]]


class Code(IntEnum):
    """Why a stream was closed. Sent: never renumbered."""

    UNSUPPORTED_DATA = UNSUPPORTED_DATA
    POLICY = 1008
    RESTART = 1012
    TRY_AGAIN = 1013
    BAD_REQUEST = 4400
    UNAUTHORIZED = 4401
    NO_TOKEN_IN_TIME = 4408
    TOO_MANY = 4429


class _Over(Exception):
    """The conversation is to be closed."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Stream:
    """The WebSocket's conversation.

    Args:
        hub: What is followed.
        find: Reads one job together with everybody else's.
        authentication: Asked again every few seconds: a stream does not outlive its token.
        token_seconds: The first message must come within them.
    """

    def __init__(
        self, hub: Hub, find: Find, authentication: Authentication, *, token_seconds: float = TOKEN_SECONDS
    ) -> None:
        self._hub = hub
        self._find = find
        self._authentication = authentication
        self._token_seconds = token_seconds
        self._unauthenticated = 0
        self.route = Route(
            method="GET",
            path=PATH,
            handle=_no_http,
            operation_id="stream",
            summary="The transitions of many jobs, over a WebSocket",
            tag="jobs",
            permission="own, admin: all",
            limit=Limit.JOBS,
        )

    async def __call__(self, socket: WebSocket) -> None:
        """Converse until either side has had enough."""
        try:
            request, message = await self._introduced(socket)
            leave = self._hub.audience.admit(request.principal, "websocket")
        except _Over as over:
            await socket.close(over.code, over.reason)
            return
        except (Refusal, Transient) as fault:
            await socket.tell(fault)
            await socket.close(_code_of(fault), "see the error before")
            return
        follower = self._hub.feed.arrive()
        try:
            await self._converse(socket, request, follower, message)
        finally:
            self._hub.feed.leave(follower)
            leave()

    # ---- the first message -----------------------------------------------------------------

    async def _introduced(self, socket: WebSocket) -> tuple[Request, dict[str, Any]]:
        """Who it is, by the token in the first message; and what else that message says."""
        if self._unauthenticated >= MOST_UNAUTHENTICATED:
            raise Unavailable("Too many connections wait to say who they are", retry_after=5)
        self._unauthenticated += 1
        try:
            async with asyncio.timeout(self._token_seconds):
                message = _document(await socket.text())
        except TimeoutError as error:
            raise _Over(Code.NO_TOKEN_IN_TIME, "the first message must hold the token") from error
        except Unreadable as error:
            raise _Over(Code.UNSUPPORTED_DATA, "send text") from error
        finally:
            self._unauthenticated -= 1
        token = message.pop("token", None)
        if not isinstance(token, str):
            raise Unauthorized('The first message must be {"token": "<access token>"}')
        return await socket.authenticated(token, self.route), message

    # ---- after it --------------------------------------------------------------------------

    async def _converse(
        self, socket: WebSocket, request: Request, follower: Follower, message: dict[str, Any]
    ) -> None:
        tasks = [
            asyncio.ensure_future(self._listen(socket, request, follower, message)),
            asyncio.ensure_future(self._tell(socket, follower)),
            asyncio.ensure_future(self._recheck(request)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                if not task.done():
                    task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        faults = [one for one in ended if isinstance(one, Exception)]
        for fault in faults:
            if not isinstance(fault, _Over):
                raise fault
        if faults and isinstance(faults[0], _Over):
            await socket.close(faults[0].code, faults[0].reason)

    async def _listen(
        self, socket: WebSocket, request: Request, follower: Follower, message: dict[str, Any]
    ) -> None:
        """Take what the client asks for, one message after the other."""
        mistakes = 0
        if message:
            mistakes += not await self._obey(socket, request, follower, message)
        while mistakes < _MOST_MISTAKES:
            try:
                asked = _document(await socket.text())
            except Unreadable as error:
                raise _Over(Code.UNSUPPORTED_DATA, "send text") from error
            except Refusal as refusal:
                await socket.tell(refusal)
                mistakes += 1
            else:
                mistakes += not await self._obey(socket, request, follower, asked)
        raise _Over(Code.POLICY, "too many mistakes")

    async def _obey(
        self, socket: WebSocket, request: Request, follower: Follower, message: dict[str, Any]
    ) -> bool:
        """Subscribe to what is asked for; whether nothing was wrong with it."""
        try:
            wanted, after = _subscription(message)
            if wanted is None:
                follower.subscribe(request.principal.id, frozenset(), after)
                return True
            known = frozenset().union(*(one.jobs for one in follower.subscriptions))
            if len(known.union(wanted)) > MOST_JOBS:
                raise Invalid(f"A connection follows {MOST_JOBS} single jobs at most", details=_TOO_LONG)
            visible, refusal = await self._visible(wanted, request)
            follower.subscribe(None, visible, after)
            if refusal is not None:
                raise refusal
        except (Refusal, Transient) as fault:
            await socket.tell(fault)
            return False
        return True

    async def _visible(
        self, wanted: Sequence[UUID], request: Request
    ) -> tuple[frozenset[UUID], NotFound | None]:
        """Those of the jobs that the caller may see, and what to say of the others."""
        found = await asyncio.gather(*(self._find(one) for one in wanted))
        visible, unknown = set(), []
        for place, (identifier, job) in enumerate(zip(wanted, found, strict=True)):
            if job is not None and may_see(job, request.principal):
                visible.add(identifier)
            else:
                unknown.append(Detail(f"subscribe.{place}", "there is no such job"))
        refusal = NotFound("There are no such jobs", details=unknown[:20]) if unknown else None
        return frozenset(visible), refusal

    async def _tell(self, socket: WebSocket, follower: Follower) -> None:
        """Send what happens, until the process stops."""
        last = 0
        while True:
            try:
                jobs = await follower.next()
            except (Transient, Unavailable):
                await asyncio.sleep(_RETRY_SECONDS)  # nothing is lost: it is asked for again
                continue
            if not jobs:
                hint = f"restarting: come back with after={last}" if last else "restarting: come back"
                raise _Over(Code.RESTART, hint)
            for job in jobs:
                await socket.send({"sequence": job.sequence, "job": job.document()})
                last = max(last, job.sequence)

    async def _recheck(self, request: Request) -> None:
        """End with the token, and with the user's right to use it."""
        while True:
            await asyncio.sleep(RECHECK_SECONDS)
            try:
                principal = await self._authentication.principal_of(request)
            except Refusal as refusal:
                raise _Over(Code.UNAUTHORIZED, refusal.message) from refusal
            except Transient:
                continue
            if principal.role is not request.principal.role:
                raise _Over(Code.UNAUTHORIZED, "your role has changed; log in again")


_TOO_LONG = (Detail("subscribe", f"at most {MOST_JOBS}"),)


def _code_of(fault: Refusal | Transient) -> Code:
    if isinstance(fault, Unauthorized):
        return Code.UNAUTHORIZED
    if isinstance(fault, RateLimited):
        return Code.TOO_MANY
    return Code.TRY_AGAIN if isinstance(fault, Transient | Unavailable) else Code.BAD_REQUEST


def _document(text: str) -> dict[str, Any]:
    """A message as an object.

    Raises:
        Invalid: It is none.
    """
    try:
        document = strict_json.parse(text.encode())
    except UnicodeEncodeError as error:
        raise Invalid("A message must be a JSON object") from error
    if not isinstance(document, dict):
        raise Invalid("A message must be a JSON object")
    return document


def _subscription(message: dict[str, Any]) -> tuple[list[UUID] | None, int | None]:
    """The jobs that are meant (None: one's own), and after which sequence.

    Raises:
        Invalid: It says anything else.
    """
    if unknown := [name for name in message if name not in ("subscribe", "after")]:
        details = [Detail(name[:64], "is not known here") for name in unknown[:20]]
        raise Invalid('A message is {"subscribe": [job ids] or "mine", "after": sequence}', details=details)
    after = message.get("after")
    if after is not None and (
        isinstance(after, bool) or not isinstance(after, int) or not 0 <= after <= _MOST_SEQUENCE
    ):
        raise Invalid("The message is not valid", details=[Detail("after", "must be a sequence")])
    wanted = message.get("subscribe")
    if wanted == "mine":
        return None, after
    if not isinstance(wanted, list) or not 1 <= len(wanted) <= MOST_JOBS:
        reason = f'must be "mine" or a list of 1 to {MOST_JOBS} job ids'
        raise Invalid("The message is not valid", details=[Detail("subscribe", reason)])
    ids = [parse_id(one) if isinstance(one, str) else None for one in wanted]
    wrong = [Detail(f"subscribe.{place}", "must be a job id") for place, one in enumerate(ids) if one is None]
    if wrong:
        raise Invalid("The message is not valid", details=wrong[:20])
    return [one for one in ids if one is not None], after


async def _no_http(request: Request) -> Response:
    raise NotFound("This is a WebSocket")
