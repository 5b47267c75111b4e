"""Cross-origin requests from browsers (the Fetch standard's CORS protocol): closed but for named origins.

No credentials are allowed, because none are kept by browsers here: tokens are sent by the page itself.
"""

from collections.abc import Collection, Sequence

from api_shim.web.http import Header, Request, Response

_VARY: Header = (b"vary", b"Origin")
_MAX_AGE: Header = (b"access-control-max-age", b"600")
_TAKEN: Header = (
    b"access-control-allow-headers",
    b"Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, Last-Event-ID, Prefer, "
    b"traceparent, Waybill-Callback, Waybill-Expires-At, Waybill-Priority, Waybill-Run-At, X-Request-ID",
)
_SHOWN: Header = (
    b"access-control-expose-headers",
    b"Allow, ETag, Idempotent-Replayed, Location, Preference-Applied, RateLimit, RateLimit-Policy, "
    b"Retry-After, WWW-Authenticate, X-Request-ID",
)


class Cors:
    """Tells browsers which pages may call this API.

    Args:
        origins: Like ``https://app.example.com``, exactly as browsers send them.
    """

    def __init__(self, origins: Collection[str]) -> None:
        self._origins = frozenset(origin.encode() for origin in origins)

    @property
    def is_closed(self) -> bool:
        """Whether no page may."""
        return not self._origins

    def headers(self, request: Request) -> tuple[Header, ...]:
        """What any answer to this request says about it."""
        origin = request.headers.get(b"origin")
        if origin not in self._origins:
            return (_VARY,)
        return _VARY, (b"access-control-allow-origin", origin), _SHOWN

    def preflight(self, request: Request, methods: Sequence[str]) -> Response | None:
        """The answer to a browser that asks beforehand; None where this is no such question, or not allowed.

        Args:
            request: To a path that takes ``methods``, and OPTIONS is none of them.
            methods: Those.
        """
        asks = request.method == "OPTIONS" and b"access-control-request-method" in request.headers
        if not asks or request.headers.get(b"origin") not in self._origins:
            return None
        allowed = (b"access-control-allow-methods", ", ".join(methods).encode())
        return Response(204, b"", (allowed, _TAKEN, _MAX_AGE))
