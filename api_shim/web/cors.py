"""Cross-origin requests (the Fetch standard's CORS): no origin is let in unless a setting names it."""

from collections.abc import Collection

from api_shim.web.http import Header, Request, Response
from api_shim.web.router import Router
from models.errors import MethodNotAllowed

_HEADERS = (
    b"authorization, content-type, if-match, if-none-match, idempotency-key, prefer, traceparent, "
    b"waybill-callback, waybill-expires-at, waybill-priority, waybill-run-at, x-request-id, last-event-id"
)
_EXPOSED = (
    b"etag, idempotent-replayed, location, preference-applied, ratelimit, ratelimit-policy, retry-after, "
    b"x-request-id"
)
_KEPT_SECONDS = b"600"
_ASKED_METHOD = b"access-control-request-method"


class Cors:
    """Lets browsers of the named origins read answers. Tokens travel in a header, so no credentials mode.

    Args:
        origins: As browsers spell them (``https://app.example.com``); empty: none.
    """

    def __init__(self, origins: Collection[str]) -> None:
        self._origins = frozenset(origin.encode() for origin in origins)

    def mark(self, request: Request) -> None:
        """Tell the browser that it may read the answer, whatever it will be."""
        if not self._origins:
            return
        request.answer_headers.append((b"vary", b"Origin"))
        origin = request.headers.get(b"origin")
        if origin in self._origins:
            request.answer_headers += [
                (b"access-control-allow-origin", origin),
                (b"access-control-expose-headers", _EXPOSED),
            ]

    def preflight(self, request: Request, router: Router) -> Response | None:
        """The answer to a browser that asks whether it may ask; None where this is no such question."""
        is_question = request.method == "OPTIONS" and _ASKED_METHOD in request.headers
        if not is_question or request.headers.get(b"origin") not in self._origins:
            return None
        headers: list[Header] = [
            (b"access-control-allow-methods", ", ".join(_methods(request, router)).encode()),
            (b"access-control-allow-headers", _HEADERS),
            (b"access-control-max-age", _KEPT_SECONDS),
        ]
        return Response(204, b"", headers)


def _methods(request: Request, router: Router) -> Collection[str]:
    """The methods of the path that is asked about.

    Raises:
        NotFound: Nothing has this path.
    """
    try:
        router.find("OPTIONS", request.path)
    except MethodNotAllowed as error:
        return error.allow
    return ()


NO_ORIGINS = Cors(())
"""The default."""
