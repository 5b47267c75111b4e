"""Headers that every answer carries, so that no browser or cache makes of it what it is not."""

from collections.abc import Iterable

from api_shim.web.http import Header

ALWAYS: tuple[Header, ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)

UNLESS_SAID: tuple[Header, ...] = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
"""For answers that do not say something else themselves."""


def missing(said: Iterable[Header]) -> list[Header]:
    """What an answer with the headers ``said`` still needs."""
    names = {name for name, _ in said}
    return [*ALWAYS, *(header for header in UNLESS_SAID if header[0] not in names)]
