"""How often one caller may send what: the gate that counts, and what it tells on every answer.

Counted by user and route; where nobody has logged in yet, by address. The header fields are those of
the IETF's draft "RateLimit header fields for HTTP" (draft-ietf-httpapi-ratelimit-headers-10).
"""

from collections.abc import Mapping

from api_shim.gate.limiter import Limiter
from api_shim.web.addresses import site_of
from api_shim.web.app import Gate
from api_shim.web.http import Request
from api_shim.web.router import Limit, Route
from models.errors import RateLimited, Unauthorized
from models.quotas import Quota


class RateLimits:
    """The gate that tells who asks, and counts them.

    Both in one, because whoever is refused for a bad token is counted too.

    Args:
        identify: Tells the request who asks.
        limiter: Counts.
        quotas: By limit; one that is missing does not bind.
    """

    def __init__(self, identify: Gate, limiter: Limiter, quotas: Mapping[Limit, Quota]) -> None:
        self._identify = identify
        self._limiter = limiter
        self._quotas = quotas
        self._policies = {limit: _policy(limit, quota) for limit, quota in quotas.items()}

    async def __call__(self, request: Request, route: Route) -> None:
        """Let the request pass, with its ``RateLimit`` noted for the answer.

        Raises:
            RateLimited: Its caller has used up the quota.
            Unauthorized: It needs a token, and has no valid one.
        """
        limit = route.limit
        if limit is None or limit not in self._quotas:
            await self._identify(request, route)
            return
        try:
            await self._identify(request, route)
        except Unauthorized:
            if Limit.ANONYMOUS in self._quotas:
                await self._count(request, Limit.ANONYMOUS, site_of(request.address))
            raise
        caller = site_of(request.address) if route.is_public else str(request.principal.id)
        await self._count(request, limit, f"{route.path}:{caller}")

    async def _count(self, request: Request, limit: Limit, key: str) -> None:
        quota = self._quotas[limit]
        verdict = await self._limiter.take(f"{limit}:{key}", quota)
        request.answer_headers += (
            (b"ratelimit-policy", self._policies[limit]),
            (b"ratelimit", b'"%b";r=%d;t=%d' % (limit.encode(), verdict.remaining, verdict.reset_seconds)),
        )
        if not verdict.is_allowed:
            raise RateLimited(
                f"More than {quota.amount} requests in {quota.seconds} seconds",
                retry_after=verdict.reset_seconds,
            )


def _policy(limit: Limit, quota: Quota) -> bytes:
    return b'"%b";q=%d;w=%d' % (limit.encode(), quota.amount, quota.seconds)
