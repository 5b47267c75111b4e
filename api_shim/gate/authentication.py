"""Authentication: who sends this request, told from its bearer token. No permissions, no login."""

import asyncio
import time
from collections.abc import Callable
from uuid import UUID

from api_shim.web.batcher import Batcher
from api_shim.web.http import Request
from api_shim.web.router import Route
from models.errors import DatabaseUnavailable, Unauthorized
from models.identity.principals import Principal
from models.identity.standing import Standing, Standings
from models.identity.tokens import Tokens, Verified

_SCHEME = b"bearer "


class Authentication:
    """Verifies bearer tokens, remembers verified ones until they expire, and asks what their users are now.

    A signature costs 126 µs to check, more than everything else at the edge; a look-up costs nothing.
    Nor does a user's standing: it is read in the background, everybody's at once.

    Args:
        tokens: Verifies what is not remembered.
        standings: Tell whether the user is still what the token says.
        capacity: Tokens remembered at most; the longest remembered goes first.
        now: POSIX seconds.
    """

    def __init__(
        self,
        tokens: Tokens,
        standings: Standings,
        *,
        capacity: int = 10_000,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._tokens = tokens
        self._standings = standings
        self._capacity = capacity
        self._now = now
        self._remembered: dict[bytes, Verified] = {}
        self._generation = tokens.generation
        self._loads: Batcher[UUID, Standing | None] = Batcher("standings", standings.load)
        self._being_read: set[UUID] = set()

    async def __call__(self, request: Request, route: Route) -> None:
        """The gate: tells the request who asks, where the route wants to know."""
        if not route.is_public:
            request.principal = await self.principal_of(request)

    async def principal_of(self, request: Request) -> Principal:
        """Who asks.

        Raises:
            Unauthorized: No token, more than one, or one that is not valid, or no longer.
            DatabaseUnavailable: It is away, and has been for too long to believe what was known.
        """
        return await self.admit(self._verified(request))

    async def admit(self, verified: Verified) -> Principal:
        """The user of a verified token, as it is now (at most some seconds old).

        Raises:
            Unauthorized: Disabled, or its tokens were withdrawn.
            DatabaseUnavailable: It cannot be told.
        """
        user_id = verified.principal.id
        standing, is_ageing = self._standings.recall(user_id)
        if standing is None:
            standing = await self._loads.call(user_id)
            if standing is None:
                raise DatabaseUnavailable("users cannot be read now")
        elif is_ageing and user_id not in self._being_read:
            self._read_again(user_id)
        return standing.admit(verified)

    def close(self) -> None:
        """Stop reading."""
        self._loads.close()

    def _verified(self, request: Request) -> Verified:
        given = request.headers.get(b"authorization")
        request.header(b"authorization")  # two of them are refused, also where one is remembered
        if given is None:
            raise Unauthorized("Send Authorization: Bearer <access token>; POST /auth/login issues one")
        if self._generation != self._tokens.generation:
            self._generation = self._tokens.generation
            self._remembered.clear()
        known = self._remembered.get(given)
        if known is not None and known.expires_at > self._now():
            return known
        if given[:7].lower() != _SCHEME:
            raise Unauthorized("The Authorization header must be: Bearer <access token>")
        try:
            token = given[7:].strip().decode("ascii")
        except UnicodeDecodeError as error:
            raise Unauthorized("The token is not valid") from error
        verified = self._tokens.verify(token)
        self._remember(given, verified)
        return verified

    def _read_again(self, user_id: UUID) -> None:
        """In the background: this request does not wait for it."""
        self._being_read.add(user_id)
        reading = self._loads.call(user_id)

        def is_read(future: "asyncio.Future[Standing | None]") -> None:
            self._being_read.discard(user_id)
            if not future.cancelled():
                future.exception()  # whoever needs the answer asks again, and is told

        reading.add_done_callback(is_read)

    def _remember(self, given: bytes, verified: Verified) -> None:
        self._remembered.pop(given, None)
        while len(self._remembered) >= self._capacity:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[given] = verified
