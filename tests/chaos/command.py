"""``waybill chaos``: a run for people, its progress, and what it found."""

import logging
import random
import signal
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from tests.chaos import faults
from tests.chaos.bugs import BUGS
from tests.chaos.run import Plan, Result, run

_SECONDS_EACH = 7.0
"""For a round of faults, with what it takes to recover, where only a time is given."""


@click.command()
@click.option("--seconds", type=click.FloatRange(5), help="How long to break things.  [default: 60]")
@click.option("--minutes", type=click.FloatRange(0.1), help="The same in minutes.")
@click.option("--seed", type=int, help="Which faults, in which order.  [default: a new one, which is told]")
@click.option(
    "--rate",
    default=30.0,
    show_default=True,
    type=click.FloatRange(1, 500),
    help="Requests a second, about.",
)
@click.option("--faults", "rounds", type=click.IntRange(0), help="How many.  [default: one in 7 s]")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Receives history, log and violations.  [default: a new one in the temporary directory]",
)
@click.option(
    "--bug", "planted", type=click.Choice(list(BUGS)), multiple=True, help="Plant one, to see it found."
)
def chaos(
    *,
    seconds: float | None,
    minutes: float | None,
    seed: int | None,
    rate: float,
    rounds: int | None,
    folder: Path | None,
    planted: tuple[str, ...],
) -> None:
    """Break a platform of its own while clients work with it, and judge what they were told.

    It runs with RabbitMQ, Redis and prefork workers, a faulty link between every pair of them. Processes and
    servers are killed, stopped and wiped, links delay, cut and swallow. Then everything heals, and every
    answer, every change in the database and every callback is held against the promise. A run takes about a
    minute more than it is given. Touches nothing that runs already. Exit status 0 only without a violation.
    """
    if seconds is not None and minutes is not None:
        raise click.UsageError("--seconds or --minutes, not both")
    time_given = seconds or (minutes * 60 if minutes else 60.0)
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    rounds = max(round(time_given / _SECONDS_EACH), 1) if rounds is None else rounds
    folder = folder or Path(tempfile.mkdtemp(prefix="waybill-chaos-"))
    signal.signal(signal.SIGTERM, _end)  # by itself it would leave the servers behind
    logging.getLogger("waybill").addHandler(logging.NullHandler())
    plan = Plan(time_given, seed, rate, faults.schedule(seed, rounds), ",".join(planted))
    result = run(plan, folder, lambda line: click.echo(f"chaos: {line}"))
    for line in summary(result):
        click.echo(line)
    click.echo(
        f"history, log and violations: {folder}; again: waybill chaos --seed {seed} "
        f"--seconds {time_given:g} --faults {rounds} --rate {rate:g}"
    )
    if result.violations:
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
    yield f"operations: {_counted(result.outcomes)}"
    yield f"jobs: {_counted(result.states)}; at rest {result.rest_seconds:.0f} s after healing"
    yield f"changes seen by the witness: {result.changes}; callbacks: {result.callbacks}"
    for violation in result.violations:
        yield f"VIOLATION {violation}"
    yield f"violations: {len(result.violations)}"


def _counted(numbers: dict[str, int]) -> str:
    shown = (f"{count} {name}" for name, count in sorted(numbers.items(), key=lambda one: -one[1]))
    return f"{sum(numbers.values())} ({', '.join(shown)})"
