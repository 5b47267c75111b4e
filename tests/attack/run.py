"""Run the list against a target, and look at the target afterwards. No printing."""

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from tests.attack.attack import Attack
from tests.attack.reply import MalformedReply
from tests.attack.target import PASSWORD, Target

MAX_GROWTH_MIB = 96
MAX_NEW_DESCRIPTORS = 24


@dataclass(frozen=True)
class Result:
    """What came of one attack; no faults: it was refused as it should be."""

    attack: Attack
    faults: Sequence[str]


def strike(target: Target, attack: Attack) -> Result:
    """One attack, and what is wrong with the answer."""
    try:
        return Result(attack, attack.faults(target))
    except (MalformedReply, AssertionError) as error:
        return Result(attack, [str(error)])
    except OSError as error:
        return Result(attack, [f"the server is away: {error}"])


def run(target: Target, attacks: Iterable[Attack]) -> Iterator[Result]:
    """One after another; those who dawdle meanwhile, so that nobody waits for them."""
    slow: list[Future[Result]] = []
    with ThreadPoolExecutor(max_workers=16) as threads:
        for attack in attacks:
            if attack.is_slow:
                slow.append(threads.submit(strike, target, attack))
            else:
                yield strike(target, attack)
        for late in slow:
            yield late.result()


@dataclass(frozen=True)
class Before:
    """How the target was before the attacks."""

    refusals: float
    memory_mib: int
    descriptors: int
    logged: int


def look(target: Target) -> Before:
    """Take its measures."""
    return Before(target.refusals(), *target.footprint(), len(target.up.said()))


def aftermath(target: Target, before: Before, attacks: int) -> Iterator[str]:
    """What the attacks left behind that they should not have."""
    target.create("user", "after the attacks")
    counted = target.refusals() - before.refusals
    if counted < attacks * 0.9:  # the few that end in a success or a bare close aside
        yield f"only {counted:.0f} refusals counted in /metrics after {attacks} attacks"
    memory, descriptors = target.footprint()
    if memory - before.memory_mib > MAX_GROWTH_MIB:
        yield f"memory grew from {before.memory_mib} to {memory} MiB"
    if descriptors - before.descriptors > MAX_NEW_DESCRIPTORS:
        yield f"open descriptors grew from {before.descriptors} to {descriptors}"
    yield from log_faults(target, before)


def log_faults(target: Target, before: Before) -> Iterator[str]:
    """Lines of the log that are no JSON, tell of an error of ours, or hold a secret."""
    said = target.up.said()[before.logged :]
    for secret in (*target.tokens.values(), PASSWORD):
        if secret in said:
            yield f"a secret in the log: {secret[:12]}…"
    for line in said.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            yield f"a line of the log that is no JSON: {line[:160]!r}"
            continue
        if record.get("level") in ("ERROR", "CRITICAL"):
            yield f"an error in the log: {line[:300]}"
