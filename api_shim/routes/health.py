"""Is this process alive, and can the platform take jobs in and apply them? Checks are injected."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

from api_shim.routes.outcomes import NO_STORE
from api_shim.web.http import Request, Response, json_response, problem_response
from api_shim.web.router import Answer, Route
from api_shim.web.threads import Threads
from models.container import Container
from models.errors import DatabaseUnavailable, Unavailable
from models.schema_fitness import why_unfit

_log = logging.getLogger("waybill.health")

CHECK_SECONDS = 3.0
_FRESH_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class ReadinessCheck:
    """One thing that must be so before traffic may come.

    Attributes:
        name: As ``/health/ready`` shows it.
        check: What is missing, in a few words without secrets; None where nothing is.
    """

    name: str
    check: Callable[[], Awaitable[str | None]]


class Health:
    """The two health routes.

    Args:
        checks: All must pass for ready.
    """

    def __init__(self, checks: Sequence[ReadinessCheck]) -> None:
        self._checks = tuple(checks)
        self._is_stopping = False

    def stop(self) -> None:
        """Be no longer ready: the process is about to stop."""
        self._is_stopping = True

    async def live(self, request: Request) -> Response:
        """200 as long as the event loop turns."""
        return json_response(200, {"status": "alive"}, (NO_STORE,))

    async def ready(self, request: Request) -> Response:
        """200 where jobs can be taken in and will be applied, else 503 with what is missing."""
        if self._is_stopping:
            return self._unready(request, {"process": "is stopping"})
        reasons = await asyncio.gather(*(_reason(one) for one in self._checks))
        checks = {one.name: reason or "ok" for one, reason in zip(self._checks, reasons, strict=True)}
        if any(reasons):
            return self._unready(request, checks)
        return json_response(200, {"status": "ready", "checks": checks}, (NO_STORE,))

    def _unready(self, request: Request, checks: dict[str, str]) -> Response:
        missing = Unavailable("Not ready", retry_after=2, extra={"checks": checks})
        return problem_response(missing.problem(request.id), (NO_STORE,))

    def routes(self) -> Iterator[Route]:
        """Live and ready."""
        yield Route(
            method="GET",
            path="/health/live",
            handle=self.live,
            operation_id="get_liveness",
            summary="Is this process alive?",
            tag="operations",
            is_public=True,
            answers={200: Answer("Yes", "Liveness", ("Cache-Control",))},
        )
        yield Route(
            method="GET",
            path="/health/ready",
            handle=self.ready,
            operation_id="get_readiness",
            summary="Can jobs be taken in, and will they be applied?",
            tag="operations",
            is_public=True,
            answers={200: Answer("Yes", "Readiness", ("Cache-Control",))},
        )


async def _reason(one: ReadinessCheck) -> str | None:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            return await one.check()
    except TimeoutError:
        return "does not answer"
    except Exception:
        _log.warning("a readiness check failed", extra={"check": one.name}, exc_info=True)
        return "cannot be checked"


class SchemaCheck:
    """Whether the database answers and has a schema that this version works with. Asked once a second.

    Args:
        container: Its database, and where migrations of your own resources are.
        threads: Where it is asked.
        now: Monotonic seconds.
    """

    def __init__(
        self, container: Container, threads: Threads, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._container = container
        self._threads = threads
        self._now = now
        self._asked_at = float("-inf")
        self._reason: str | None = None
        self._asking = asyncio.Lock()

    async def __call__(self) -> str | None:
        """What is missing, or None."""
        if (away := self._container.database.away_seconds) is not None:
            return f"the database is away (for {away:.0f} s)"
        async with self._asking:
            if self._now() - self._asked_at > _FRESH_SECONDS:
                self._reason = await self._threads.call(self._ask)
                self._asked_at = self._now()
        return self._reason

    def _ask(self) -> str | None:
        _ = self._container.registry  # its tables belong to the schema
        try:
            with self._container.database.snapshot() as connection:
                return why_unfit(connection, self._container.revisions)
        except DatabaseUnavailable:
            return "the database does not answer"
