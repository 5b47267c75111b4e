"""The drain: jobs are already accepted, workers are launched, rows applied per second."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import psycopg

from tests.bench.contender import Contender
from tests.bench.progress import watch
from tests.bench.servers import Servers


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainResult:
    """One turn of one contender.

    Attributes:
        steady_rate: Rows per second, first rows seen to last row seen: the figure that is compared.
        launch_rate: Rows per second from the launch of the worker process to the last row seen.
        proof: What its own records say about the outcome.
    """

    steady_rate: float
    launch_rate: float
    proof: str

    @property
    def figure(self) -> float:
        """What ratios are made of."""
        return self.steady_rate

    def __str__(self) -> str:
        return f"{self.steady_rate:9,.0f} jobs/s ({self.launch_rate:,.0f}/s with start-up)   {self.proof}"


def drain(
    contender: Contender,
    servers: Servers,
    count: int,
    *,
    beside: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> DrainResult:
    """One turn: fresh database, ``count`` jobs handed in, workers launched, all rows awaited.

    ``beside`` is entered right after the launch: room for a profiler.
    """
    contender.reset()
    contender.enqueue(count)
    with servers.connect(contender.database) as connection:
        connection.execute("CHECKPOINT")
        launched_at = time.monotonic()
        with contender.workers(), beside():
            progress = watch(lambda: count_rows(connection, contender.applied_query), count)
            proof = contender.verify(count)
    return DrainResult(
        steady_rate=progress.steady_rate,
        launch_rate=count / (progress.last_at - launched_at),
        proof=proof,
    )


def count_rows(connection: psycopg.Connection, query: str) -> int:
    """The number that a ``SELECT count(*)`` gives."""
    row = connection.execute(query).fetchone()
    return int(row[0]) if row else 0
