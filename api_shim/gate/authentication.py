"""Authentication: who sends this request, told from its bearer token. No permissions, no login."""

import time
from collections.abc import Callable

from api_shim.web.http import Request
from api_shim.web.router import Route
from models.errors import Unauthorized
from models.identity.principals import Principal
from models.identity.tokens import Tokens

_SCHEME = b"bearer "


class Authentication:
    """Verifies bearer tokens, and remembers verified ones until they expire.

    A signature costs 126 µs to check, more than everything else at the edge; a look-up costs nothing.

    Args:
        tokens: Verifies what is not remembered.
        capacity: Tokens remembered at most; the longest remembered goes first.
        now: POSIX seconds.
    """

    def __init__(
        self, tokens: Tokens, *, capacity: int = 10_000, now: Callable[[], float] = time.time
    ) -> None:
        self._tokens = tokens
        self._capacity = capacity
        self._now = now
        self._remembered: dict[bytes, tuple[Principal, float]] = {}

    async def __call__(self, request: Request, route: Route) -> None:
        """The gate: tells the request who asks, where the route wants to know."""
        if not route.is_public:
            request.principal = self.principal_of(request)

    def principal_of(self, request: Request) -> Principal:
        """Who asks.

        Raises:
            Unauthorized: No token, more than one, or one that is not valid.
        """
        given = request.headers.get(b"authorization")
        if given is None:
            raise Unauthorized("Send Authorization: Bearer <access token>; POST /auth/login issues one")
        known = self._remembered.get(given)
        if known is not None and known[1] > self._now():
            return known[0]
        request.header(b"authorization")
        if given[:7].lower() != _SCHEME:
            raise Unauthorized("The Authorization header must be: Bearer <access token>")
        try:
            token = given[7:].strip().decode("ascii")
        except UnicodeDecodeError as error:
            raise Unauthorized("The token is not valid") from error
        verified = self._tokens.verify(token)
        self._remember(given, verified)
        return verified[0]

    def _remember(self, given: bytes, verified: tuple[Principal, float]) -> None:
        self._remembered.pop(given, None)
        while len(self._remembered) >= self._capacity:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[given] = verified
