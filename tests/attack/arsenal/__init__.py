"""All attacks, one module a surface; each has ``attacks()``."""

from collections.abc import Iterator

from tests.attack.arsenal import (
    addresses,
    bodies,
    headers,
    http_itself,
    members,
    ownership,
    queries,
    tokens,
    websockets,
)
from tests.attack.attack import Attack


def everything() -> Iterator[Attack]:
    """Every attack of the list."""
    for module in (http_itself, headers, bodies, members, queries, tokens, ownership, addresses, websockets):
        yield from module.attacks()
