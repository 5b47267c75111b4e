"""Running the rounds in turn and printing what they gave: figures, ratios, goals, machine and versions."""

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from kombu import Connection

from tests.bench.contender import Contender
from tests.bench.figures import Spread, ratios
from tests.bench.load import Outcome
from tests.bench.servers import Servers

PACKAGES = ("celery", "kombu", "dramatiq", "fastapi", "starlette", "uvicorn", "sqlalchemy", "psycopg")
POSTGRES_SETTINGS = (
    "server_version",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "shared_buffers",
    "max_wal_size",
)


class Result(Protocol):
    """One turn's outcome: a figure to compare, and a line to print."""

    @property
    def figure(self) -> float:
        """What ratios are made of."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What we mean to reach against a peer."""

    peer: str
    at_least: float


def describe_surroundings(servers: Servers) -> None:
    """Print the machine, the versions, and the server settings as the servers themselves state them."""
    print(f"machine     {_cpu_model()}, {len(os.sched_getaffinity(0))} cores, {platform.platform()}")
    print(f"load        {' '.join(f'{load:.2f}' for load in os.getloadavg())} before the first round")
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    print(f"versions    Python {platform.python_version()}, {packages}")
    with servers.connect() as connection:
        rows = [connection.execute(f"SHOW {name}").fetchone() for name in POSTGRES_SETTINGS]
    shown = ", ".join(f"{name}={row[0]}" for name, row in zip(POSTGRES_SETTINGS, rows, strict=True) if row)
    print(f"PostgreSQL  {shown}")
    with Connection(servers.broker_url) as broker:
        broker.connect()
        properties = broker.connection.server_properties
    print(f"RabbitMQ    {properties['version']} ({properties['platform']})")


def describe_ceiling(outcome: Outcome) -> None:
    """Print what the load generator reached against an app that does nothing."""
    requests = sum(outcome.statuses.values())
    print(
        f"load generator's ceiling, against a bare ASGI app on uvicorn: {outcome.answered_per_second:,.0f} "
        f"requests/s, {outcome.cpu_seconds / requests * 1e6:.0f} µs of client CPU each"
    )


def run_rounds(
    rounds: int, contenders: Sequence[Contender], turn: Callable[[Contender], Result]
) -> dict[str, list[float]]:
    """Let everybody take a turn in each round, ours first, and print each; figures by contender's name."""
    figures: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for contender in contenders:
        print(f"  {contender.name:16} {contender.setup}")
    for number in range(1, rounds + 1):
        for contender in contenders:
            result = turn(contender)
            figures[contender.name].append(result.figure)
            load = os.getloadavg()[0]
            print(f"  round {number}  {contender.name:16} {result}   load {load:.2f}", flush=True)
    return figures


def describe_figures(ours: str, figures: Mapping[str, Sequence[float]], goals: Sequence[Goal]) -> None:
    """Print medians and spreads, our ratio to each peer, and whether each goal is reached."""
    for name, numbers in figures.items():
        print(f"  {name:16} median {Spread.of(numbers):,.0f} jobs/s")
    wanted = {goal.peer: goal.at_least for goal in goals}
    for peer, numbers in figures.items():
        if peer == ours or ours not in figures:
            continue
        ratio = ratios(figures[ours], numbers)
        line = f"  {ours} / {peer}: {ratio:.1f} x"
        if peer in wanted:
            verdict = "reached" if ratio.median >= wanted[peer] else "MISSED"
            line += f"; goal at least {wanted[peer]:.0f} x: {verdict}"
        print(line)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())
