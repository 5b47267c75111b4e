"""Refusals of acts that answer for themselves: each leaves an entry in the audit trail."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from api_shim.web.http import Request
from api_shim.web.threads import Threads
from models.audit import Actor, RefusalTrail
from models.errors import Refusal, Unavailable

_NO_ID = "(no id)"


class Refusals:
    """Writes them down.

    Args:
        trail: Where.
        threads: Where the database is asked.
    """

    def __init__(self, trail: RefusalTrail, threads: Threads) -> None:
        self._trail = trail
        self._threads = threads

    @asynccontextmanager
    async def recorded(self, action: str, request: Request, subject: str = _NO_ID) -> AsyncIterator[None]:
        """What is refused inside is on record as ``action``, and refused still.

        Args:
            action: As the trail is to name it.
            request: Who asks; the id in its path is what it is done to.
            subject: That, where no id is in the path.
        """
        try:
            yield
        except Unavailable:  # nobody has judged it; and where there is no room, this would take some
            raise
        except Refusal as refusal:
            named = request.parameters.get("id", subject)
            printable = named if named.isprintable() else _NO_ID
            await self._threads.call(self._trail.write, action, printable, refusal, actor_of(request))
            raise


def actor_of(request: Request) -> Actor:
    """Who asks."""
    return Actor(request.principal.id, request.principal.email, request.id)
