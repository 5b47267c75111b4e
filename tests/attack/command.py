"""``waybill attack``: the list, its table, and fuzzing for as long as one likes."""

import random
import time
from collections import defaultdict

import click

from tests.attack import fuzz
from tests.attack.arsenal import everything
from tests.attack.run import Result, aftermath, log_faults, look, run
from tests.attack.target import running_target


@click.command()
@click.option("--only", default="", help="Only attacks whose kind or name contains this text.")
@click.option("--fuzz", "fuzz_seconds", default=0, show_default=True, help="Then fuzz for so many seconds.")
@click.option("--seed", type=int, help="Of the fuzzing; printed, so that a run can be repeated.")
@click.option("--verbose", "-v", is_flag=True, help="A line for each attack.")
def attack(*, only: str, fuzz_seconds: int, seed: int | None, verbose: bool) -> None:
    """Attack a platform of its own and print how each attack was refused.

    Touches nothing that runs already. Exit status 0 only if every attack got its correct refusal, and the
    platform afterwards works, has counted them, told no secret in its log and is no larger than before.
    """
    attacks = [one for one in everything() if only in one.label]
    if not attacks:
        raise click.UsageError(f"no attack is called {only!r}")
    with running_target() as target:
        before = look(target)
        results = []
        for result in run(target, attacks):
            results.append(result)
            if verbose or result.faults:
                click.echo(_line(result))
        faults = list(aftermath(target, before, len(attacks)))
        _print_table(results)
        if fuzz_seconds:
            seed = random.SystemRandom().randrange(2**32) if seed is None else seed
            began = time.monotonic()
            click.echo(f"\nfuzzing for {fuzz_seconds} s with --seed {seed}")
            count, found = fuzz.run(target, seed, seconds=fuzz_seconds)
            faults += found + list(log_faults(target, before))
            click.echo(f"{count:,} requests in {time.monotonic() - began:.0f} s, {len(found)} wrong answers")
    for fault in dict.fromkeys(faults):
        click.echo(f"AFTERWARDS: {fault}")
    broken = sum(bool(result.faults) for result in results)
    click.echo(f"\n{len(results)} attacks, {len(results) - broken} refused correctly, {broken} not")
    raise SystemExit(1 if broken or faults else 0)


def _line(result: Result) -> str:
    verdict = "; ".join(result.faults) if result.faults else "refused"
    return f"{'BROKEN ' if result.faults else ''}{result.attack.label}: {verdict}"


def _print_table(results: list[Result]) -> None:
    kinds: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        kinds[result.attack.kind].append(result)
    click.echo(f"\n{'attack':<18}{'sent':>6}{'refused':>9}{'broken':>8}  answers that are right")
    for kind, those in kinds.items():
        broken = sum(bool(one.faults) for one in those)
        right = sorted({status for one in those for status in one.attack.expected})
        wanted = ", ".join(str(status or "closed") for status in right)
        click.echo(f"{kind:<18}{len(those):>6}{len(those) - broken:>9}{broken:>8}  {wanted}")
