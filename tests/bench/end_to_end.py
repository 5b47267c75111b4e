"""End to end: HTTP requests on keep-alive connections until the last job is applied, workers beside."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from tests.bench.ceiling import send_load
from tests.bench.contender import Contender
from tests.bench.drain import count_rows
from tests.bench.load import Order, Outcome
from tests.bench.processes import BenchFailure
from tests.bench.progress import watch
from tests.bench.servers import Servers

WARM_UP_REQUESTS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class EndToEndResult:
    """One turn of one contender.

    Attributes:
        applied_rate: Requests per second, from the first byte sent to the last row applied: compared.
        load: What the load generator saw.
        proof: What its own records say about the outcome.
    """

    applied_rate: float
    load: Outcome
    proof: str

    @property
    def figure(self) -> float:
        """What ratios are made of."""
        return self.applied_rate

    def __str__(self) -> str:
        load = self.load
        client_cpu = load.cpu_seconds / sum(load.statuses.values()) * 1e6
        return (
            f"{self.applied_rate:9,.0f} jobs/s (answered {load.answered_per_second:,.0f}/s, "
            f"p50 {load.p50_ms:.1f} p95 {load.p95_ms:.1f} p99 {load.p99_ms:.1f} ms, "
            f"client CPU {client_cpu:.0f} µs/request)   {self.proof}"
        )


def end_to_end(
    contender: Contender,
    servers: Servers,
    requests: int,
    connections: int,
    *,
    beside: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> EndToEndResult:
    """One turn: fresh database, API and workers up and warm, then the load, then the last row.

    Raises:
        BenchFailure: A request was not answered 202, or a row is missing.
    """
    contender.reset()
    with (
        contender.workers(),
        contender.api() as door,
        servers.connect(contender.database) as connection,
    ):

        def send(first: int, number: int) -> Outcome:
            outcome = send_load(
                Order(
                    port=door.port,
                    path=door.path,
                    token=door.token,
                    first=first,
                    requests=number,
                    connections=min(connections, number),
                )
            )
            if outcome.accepted != number:
                raise BenchFailure(f"{contender.name}: {number} requests, answered {outcome.statuses}")
            return outcome

        def count() -> int:
            return count_rows(connection, contender.applied_query)

        send(0, WARM_UP_REQUESTS)
        watch(count, WARM_UP_REQUESTS)
        connection.execute("CHECKPOINT")
        with beside():
            load = send(WARM_UP_REQUESTS, requests)
            progress = watch(count, WARM_UP_REQUESTS + requests)
        proof = contender.verify(WARM_UP_REQUESTS + requests)
    return EndToEndResult(
        applied_rate=requests / (progress.last_at - load.started_at),
        load=load,
        proof=proof,
    )
