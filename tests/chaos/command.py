"""``waybill chaos``: a run for people, its progress, and what it found."""

import logging
import random
import signal
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import click

from models.failpoints import points
from tests.chaos import crashes, failover, faults
from tests.chaos.arena import Arena
from tests.chaos.bugs import BUGS
from tests.chaos.clustered_arena import ClusteredArena
from tests.chaos.run import Plan, Result, run
from tests.chaos.stopwatch import SETTLING_SECONDS

_SECONDS_EACH = 7.0
"""For a round of faults, with what it takes to recover, where only a time is given."""

GOALS: tuple[tuple[str, float, Callable[[str], bool]], ...] = (
    ("a worker killed", 15, lambda fault: fault in ("kill worker", "kill pool", "kill whole-pool")),
    ("a broker killed", 15, lambda fault: fault in ("kill rabbitmq", "stop rabbitmq")),
    ("PostgreSQL away", 10, lambda fault: fault.split()[0] in _FELLING and fault.endswith(" postgres")),
    ("a silent peer", 30, lambda fault: fault.split()[0] in ("black-hole", "swallow", "stop")),
    ("a broker's node lost", 15, lambda fault: fault.split()[0] in _NODE_LOST),
    ("a primary lost, its standby promoted", 15, lambda fault: fault == "lose postgres"),
    ("a broker wiped", 60, lambda fault: fault == "wipe rabbitmq"),
)
"""What is to recover within how many seconds: of its begin where it is over at once, else of its return."""

_LARGEST = 4
_NODE_LOST = ("kill-leader", "kill-follower", "stop-leader")
_FELLING = ("kill", "immediate", "stop", "kill-backend")


@click.command()
@click.option("--seconds", type=click.FloatRange(5), help="How long to break things.  [default: 60]")
@click.option("--minutes", type=click.FloatRange(0.1), help="The same in minutes.")
@click.option("--seed", type=int, help="Which faults, in which order.  [default: a new one, which is told]")
@click.option(
    "--rate",
    default=30.0,
    show_default=True,
    type=click.FloatRange(1, 2000),
    help="Requests a second, about.",
)
@click.option(
    "--clients", default=4, show_default=True, type=click.IntRange(1, 100), help="HTTP clients of each user."
)
@click.option(
    "--reads",
    default=0.3,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="The share of acts that only look: at jobs, entities, lists.",
)
@click.option("--faults", "rounds", type=click.IntRange(0), help="How many rounds.  [default: one in 7 s]")
@click.option(
    "--at-once",
    default=1.25,
    show_default=True,
    type=click.FloatRange(1, 4),
    help="How many things are broken at once, on average.",
)
@click.option(
    "--failpoints",
    type=click.IntRange(0),
    help="Instead of all that: crash on each side of every commit, publish, acknowledgement and send, and "
    "then at so many random pairs of them.",
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Receives history, log and violations.  [default: a new one in the temporary directory]",
)
@click.option(
    "--bug", "planted", type=click.Choice(list(BUGS)), multiple=True, help="Plant one, to see it found."
)
@click.option(
    "--cluster",
    "is_clustered",
    is_flag=True,
    help="With three RabbitMQ nodes and a synchronous PostgreSQL standby; nodes and primaries are lost too.",
)
def chaos(
    *,
    seconds: float | None,
    minutes: float | None,
    seed: int | None,
    rate: float,
    clients: int,
    reads: float,
    rounds: int | None,
    at_once: float,
    failpoints: int | None,
    folder: Path | None,
    planted: tuple[str, ...],
    is_clustered: bool,
) -> None:
    """Break a platform of its own while clients work with it, and judge what they were told.

    It runs with RabbitMQ, Redis and prefork workers, a faulty link between every pair of them. Processes and
    servers are killed, stopped and wiped, links delay, cut and swallow, disks fill up, clocks jump. Then
    everything heals, and every answer, every change in the database and every callback is held against the
    promise. A run takes about a minute more than it is given. Touches nothing that runs already. Exit status
    0 only without a violation.
    """
    if seconds is not None and minutes is not None:
        raise click.UsageError("--seconds or --minutes, not both")
    time_given = seconds or (minutes * 60 if minutes else 60.0)
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    rounds = max(round(time_given / _SECONDS_EACH), 1) if rounds is None else rounds
    folder = folder or Path(tempfile.mkdtemp(prefix="waybill-chaos-"))
    signal.signal(signal.SIGTERM, _end)  # by itself it would leave the servers behind
    logging.getLogger("waybill").addHandler(logging.NullHandler())
    if failpoints is None:
        schedule = faults.schedule(seed, rounds, at_once=at_once)
        again = f"--seconds {time_given:g} --faults {rounds} --at-once {at_once:g}"
    else:
        time_given = 0
        schedule = [*crashes.singles(seed), *crashes.pairs(seed, failpoints)]
        again = f"--failpoints {failpoints}"
    if is_clustered:
        schedule = failover.among(schedule, seed)
    plan = Plan(
        time_given,
        seed,
        rate,
        schedule,
        ",".join(planted),
        clients=clients,
        reads=reads,
        is_hurried=failpoints is not None,
        arena=ClusteredArena if is_clustered else Arena,
    )
    result = run(plan, folder, lambda line: click.echo(f"chaos: {line}"))
    for line in summary(result):
        click.echo(line)
    click.echo(
        f"history, log and violations: {folder}; again: waybill chaos --seed {seed} {again} "
        f"--rate {rate:g} --clients {clients} --reads {reads:g}" + " --cluster" * is_clustered
    )
    if result.violations or (failpoints is not None and result.unreached):
        raise SystemExit(1)


def _end(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def summary(result: Result) -> Iterator[str]:
    """What a run found, for people."""
    yield f"faults: {sum(map(len, result.recoveries.values()))}, of {len(result.recoveries)} kinds"
    for name, times in sorted(result.recoveries.items()):
        yield (
            f"  {name:32} {len(times):3} x  recovered in {statistics.median(times):5.1f} s"
            + (f", at most {max(times):.1f} s" if len(times) > 1 else "")
        )
    for what, goal, belongs in GOALS:
        times = [took for name, some in result.recoveries.items() if belongs(name) for took in some]
        if times:
            yield f"  {what}: recovered in at most {max(times):.1f} s, {len(times)} times (goal: {goal:g} s)"
    if result.deleted_queues:
        deleted = _counted(Counter(result.deleted_queues))
        yield f"queues that RabbitMQ could not restore, deleted and made anew: {deleted}"
    if result.crashed or result.unreached:
        yield f"failpoints crashed at: {len(result.crashed)} of {len(list(points()))}"
    if result.unreached:
        yield f"failpoints that nobody came to in time: {', '.join(result.unreached)}"
    yield f"operations: {_counted(result.outcomes)}"
    yield f"jobs: {_counted(result.states)}; at rest {result.rest_seconds:.0f} s after healing"
    yield f"changes seen by the witness: {result.changes}; callbacks: {result.callbacks}"
    yield from _paces(result)
    for kind, memory in result.memory.items():
        shown = " ".join(str(resident >> 20) for resident in memory)
        yield f"memory of {kind} (MiB; at first, in the quarters, at rest): {shown}"
    for name, table in sorted(result.tables.items(), key=lambda one: -one[1].held)[:_LARGEST]:
        yield f"table {name}: {table.held >> 20} MiB, {table.needed >> 20} once it is written anew"
    for violation in result.violations:
        yield f"VIOLATION {violation}"
    yield f"violations: {len(result.violations)}"


def _paces(result: Result) -> Iterator[str]:
    pace = result.pace
    asked = f"requests: {result.rate:.0f} a second; {result.requests} timed"
    if pace is None:
        yield f"{asked}, all within {SETTLING_SECONDS:g} s of a fault"
        return
    yield (
        f"{asked}, of them {pace.requests} not within {SETTLING_SECONDS:g} s of a "
        f"fault: {pace.errors} errors, median {pace.median * 1000:.0f} ms, p95 {pace.p95 * 1000:.0f} ms, "
        f"p99 {pace.p99 * 1000:.0f} ms"
    )


def _counted(numbers: Mapping[str, int]) -> str:
    shown = (f"{count} {name}" for name, count in sorted(numbers.items(), key=lambda one: -one[1]))
    return f"{sum(numbers.values())} ({', '.join(shown)})"
