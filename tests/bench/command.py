"""``waybill bench``: the options, the servers, the rounds in order. Measuring and printing live beside it."""

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import click

from models.errors import ConfigurationError
from tests.bench import ceiling, contender, report
from tests.bench.contender import Contender
from tests.bench.drain import DrainResult, drain
from tests.bench.end_to_end import EndToEndResult, end_to_end
from tests.bench.ours import Waybill
from tests.bench.processes import BenchFailure
from tests.bench.profiler import profiled
from tests.bench.report import Goal
from tests.bench.servers import Servers, servers

CEILING_REQUESTS = 30_000
DRAIN_GOALS = (Goal("tutorial Celery", 12),)
END_TO_END_GOALS = (Goal("FastAPI + Celery", 10),)


@click.command()
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Rounds, in turn.")
@click.option("--drain-jobs", default=20_000, show_default=True, help="Jobs that Waybill drains per round.")
@click.option("--peer-jobs", default=4_000, show_default=True, help="The same for the peers.")
@click.option("--requests", default=20_000, show_default=True, help="Requests to Waybill per round.")
@click.option("--peer-requests", default=3_000, show_default=True, help="The same for the peer.")
@click.option("--connections", default=64, show_default=True, help="Keep-alive connections.")
@click.option("--only", type=click.Choice(["drain", "e2e"]), help="One of the two measurements.")
@click.option("--peers-only", is_flag=True, help="Leave Waybill out.")
@click.option(
    "--profile",
    type=click.Path(file_okay=False, path_type=Path),
    help="After the rounds, one more of ours under py-spy; flame graphs go to this directory.",
)
@click.option("--keep-logs", type=click.Path(file_okay=False, path_type=Path), help="Where logs stay.")
@click.option("--database-url", envvar="WAYBILL_BENCH_DATABASE_URL", default="", help="Else one is started.")
@click.option("--broker-url", envvar="WAYBILL_BENCH_BROKER_URL", default="", help="Else one is started.")
@click.option("--redis-url", envvar="WAYBILL_BENCH_REDIS_URL", default="", help="Else one is started.")
def bench(
    rounds: int,
    drain_jobs: int,
    peer_jobs: int,
    requests: int,
    peer_requests: int,
    connections: int,
    only: str | None,
    peers_only: bool,
    profile: Path | None,
    keep_logs: Path | None,
    database_url: str,
    broker_url: str,
    redis_url: str,
) -> None:
    """Measure Waybill and its peers in turn, on the same servers, and print the ratios.

    Named servers must be the benchmark's alone: it recreates the databases bench_* and empties queues.
    The exit status is 0 also where a goal is missed; anything not applied exactly once is an error.
    """
    given = {"database_url": database_url, "broker_url": broker_url, "redis_url": redis_url}
    try:
        with working_directory(keep_logs) as directory, servers(given) as running:
            report.describe_surroundings(running)
            ours = Waybill(running, directory)
            if only != "e2e":
                _drain(running, directory, ours, rounds, (drain_jobs, peer_jobs), peers_only, profile)
            if only != "drain":
                counts = (requests, peer_requests)
                _end_to_end(running, directory, ours, rounds, counts, connections, peers_only, profile)
    except (BenchFailure, ConfigurationError) as failure:
        raise click.ClickException(str(failure)) from failure


def _drain(
    running: Servers,
    directory: Path,
    ours: Waybill,
    rounds: int,
    counts: tuple[int, int],
    peers_only: bool,
    profile: Path | None,
) -> None:
    print(
        f"\nDRAIN: jobs already accepted, then workers launched ({counts[0]:,} for Waybill, {counts[1]:,} "
        "for peers; rates are compared, not totals).\n"
        "Rate: from the first rows seen in the table to the last; in brackets from the worker's launch."
    )

    def turn(who: Contender) -> DrainResult:
        return drain(who, running, counts[0] if who is ours else counts[1])

    peers: list[Contender] = [contender.tutorial(running, directory), contender.dramatiq(running, directory)]
    figures = report.run_rounds(rounds, peers if peers_only else [ours, *peers], turn)
    report.describe_figures(ours.name, figures, DRAIN_GOALS)
    if profile is not None:
        drain(ours, running, counts[0], beside=partial(profiled, ours.pids, profile, "drain"))


def _end_to_end(
    running: Servers,
    directory: Path,
    ours: Waybill,
    rounds: int,
    counts: tuple[int, int],
    connections: int,
    peers_only: bool,
    profile: Path | None,
) -> None:
    print(
        f"\nEND TO END: HTTP requests on {connections} keep-alive connections until the last job is applied, "
        f"workers beside ({counts[0]:,} for Waybill, {counts[1]:,} for peers, after 200 to warm up)."
    )
    report.describe_ceiling(ceiling.measure(CEILING_REQUESTS, connections, directory))

    def turn(who: Contender) -> EndToEndResult:
        return end_to_end(who, running, counts[0] if who is ours else counts[1], connections)

    peers: list[Contender] = [contender.fastapi(running, directory)]
    figures = report.run_rounds(rounds, peers if peers_only else [ours, *peers], turn)
    report.describe_figures(ours.name, figures, END_TO_END_GOALS)
    if profile is not None:
        beside = partial(profiled, ours.pids, profile, "e2e")
        end_to_end(ours, running, counts[0], connections, beside=beside)


def working_directory(keep: Path | None) -> AbstractContextManager[Path]:
    """Where the logs and Waybill's data are: a temporary directory, or one that stays."""
    if keep is None:
        return _temporary_directory()
    keep.mkdir(parents=True, exist_ok=True)
    return nullcontext(keep.resolve())


@contextmanager
def _temporary_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="waybill-bench-") as name:
        yield Path(name)
