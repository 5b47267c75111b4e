"""GET /metrics, in Prometheus's text format. What is measured stands in ``models/metrics.py``."""

import time
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from api_shim.routes.outcomes import NO_STORE
from api_shim.web.http import Request, Response
from api_shim.web.router import Answer, Route
from api_shim.web.threads import Threads
from models.breaker import BreakerBoard, OpenBreaker, Phase
from models.database import Database
from models.deliveries.outbox import DeliveryKind, Outbox
from models.errors import Transient
from models.job import JobState, Priority
from models.ledger import Ledger

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FRESH_SECONDS = 2.0
MOST_BREAKERS = 100
"""Breakers that are shown by name; users may register any number of hosts that are not there."""

Backlog = list[tuple[JobState, Priority, int, float]]


class BacklogCollector(Collector):
    """What waits in the ledger, asked when it is scraped (at most every two seconds).

    Says nothing while the database is away: absent is not zero.
    """

    def __init__(
        self, database: Database, ledger: Ledger, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._now = now
        self._asked_at = float("-inf")
        self._known: Backlog = []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The two gauges, open and scheduled jobs only."""
        try:
            backlog = self._backlog()
        except Transient:
            return
        waiting = GaugeMetricFamily("waybill_jobs", "Jobs that are not final", labels=["state", "priority"])
        ages = dict.fromkeys(Priority, 0.0)
        for state, priority, count, age in backlog:
            waiting.add_metric([state, priority], count)
            if state is not JobState.SCHEDULED:
                ages[priority] = max(ages[priority], age)
        yield waiting
        oldest = GaugeMetricFamily(
            "waybill_oldest_open_job_seconds", "Age of the oldest queued or retrying job", labels=["priority"]
        )
        for priority, age in ages.items():
            oldest.add_metric([priority], age)
        yield oldest

    def _backlog(self) -> Backlog:
        if self._now() - self._asked_at > _FRESH_SECONDS:
            with self._database.snapshot() as connection:
                self._known = self._ledger.backlog(connection)
            self._asked_at = self._now()
        return self._known


class OutboxCollector(Collector):
    """What waits in the outbox, and breakers that are not closed. Silent while the database is away."""

    def __init__(self, database: Database, outbox: Outbox) -> None:
        self._database = database
        self._outbox = outbox

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges of the outbox, and of each breaker that is not closed."""
        try:
            with self._database.snapshot() as connection:
                waiting = self._outbox.waiting(connection)
                breakers, among = BreakerBoard(connection).not_closed(MOST_BREAKERS)
        except Transient:
            return
        count = GaugeMetricFamily(
            "waybill_deliveries_waiting", "Deliveries not settled yet", labels=["kind", "state"]
        )
        ages = dict.fromkeys(DeliveryKind, 0.0)
        for kind, state, number, age in waiting:
            count.add_metric([kind, state], number)
            ages[kind] = max(ages[kind], age)
        yield count
        oldest = GaugeMetricFamily(
            "waybill_oldest_delivery_seconds", "Age of the oldest delivery not settled yet", labels=["kind"]
        )
        for kind, age in ages.items():
            oldest.add_metric([kind], age)
        yield oldest
        yield GaugeMetricFamily(
            "waybill_breakers_open",
            "Receivers and third parties whose breaker is not closed",
            value=among,
        )
        yield from _each(breakers)


def _each(breakers: Sequence[OpenBreaker]) -> Iterator[GaugeMetricFamily]:
    """State and next probe of each."""
    is_open = GaugeMetricFamily(
        "waybill_breaker_open",
        f"Breakers that are open (1) or half-open (0), {MOST_BREAKERS} at most, third parties first",
        labels=["dependency"],
    )
    probe = GaugeMetricFamily(
        "waybill_breaker_probe_seconds",
        "Time until one delivery may probe; 0 where it may go now, and where none is there to go",
        labels=["dependency"],
    )
    for one in breakers:
        is_open.add_metric([one.dependency], one.phase is Phase.OPEN)
        probe.add_metric([one.dependency], one.rest.total_seconds())
    yield is_open
    yield probe


class EdgeCollector(Collector):
    """How busy this process is just now.

    Args:
        database: Its pool.
        active_principals: How many users have sent a request lately.
    """

    def __init__(self, database: Database, active_principals: Callable[[], int]) -> None:
        self._database = database
        self._active_principals = active_principals

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges of the process that is scraped."""
        in_use, size = self._database.pool_use
        pool = GaugeMetricFamily(
            "waybill_database_connections", "Connections of this process's pool", labels=["kind"]
        )
        pool.add_metric(["in_use"], in_use)
        pool.add_metric(["size"], size)
        yield pool
        yield GaugeMetricFamily(
            "waybill_active_principals",
            "Users who have sent this process a request in the last minute",
            value=self._active_principals(),
        )


class Metrics:
    """The metrics route.

    Args:
        collectors: Gauges that are read when they are asked for.
        threads: Where they are read.
        is_multiprocess: Whether the processes of the platform share their counters by files.
    """

    def __init__(self, collectors: Sequence[Collector], threads: Threads, *, is_multiprocess: bool) -> None:
        self._collectors = tuple(collectors)
        self._threads = threads
        self._is_multiprocess = is_multiprocess

    async def get(self, request: Request) -> Response:
        """Everything, in text."""
        body = await self._threads.call(self._exposition)
        return Response(200, body, ((b"content-type", MEDIA_TYPE.encode()), NO_STORE))

    def _exposition(self) -> bytes:
        gauges = CollectorRegistry()
        for collector in self._collectors:
            gauges.register(collector)
        counters = REGISTRY
        if self._is_multiprocess:
            counters = CollectorRegistry()
            MultiProcessCollector(counters)  # type: ignore[no-untyped-call]
        return generate_latest(counters) + generate_latest(gauges)

    def routes(self) -> Iterator[Route]:
        """The one route."""
        yield Route(
            method="GET",
            path="/metrics",
            handle=self.get,
            operation_id="get_metrics",
            summary="Metrics for Prometheus",
            tag="operations",
            is_public=True,
            answers={200: Answer("Metrics", "Text", ("Cache-Control",), "text/plain")},
        )
