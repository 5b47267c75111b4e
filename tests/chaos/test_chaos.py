"""The machine on the real platform: short runs of it, and that a seed replays its faults."""

from pathlib import Path

import pytest

from deploy.rabbitmq_server import find_rabbitmq
from deploy.redis_server import find_redis
from tests.chaos import clocks, faults
from tests.chaos.faults import Fault
from tests.chaos.run import Plan, run
from tests.kit.servers import require

SECONDS, ROUNDS, RATE = 65, 9, 25
ALWAYS = [
    [Fault("full", "postgres", 4, 1)],
    [Fault("full-wal", "postgres", 3, 2), Fault("behind", "consumer", 5, 4)],
    [Fault("full", "rabbitmq", 3, 3), Fault("ahead", "worker", 5, 4)],
    [Fault("full", "redis", 4, 4), Fault("behind", "api", 4, 5)],
]
"""Whatever the seed brings, for each of these needs means of its own."""


@pytest.mark.timeout(900)
def test_promise_holds_while_everything_is_broken(tmp_path: Path) -> None:
    require(find_rabbitmq)
    require(find_redis)
    require(clocks.find_means)
    seed = 21

    result = run(Plan(SECONDS, seed, RATE, [*faults.schedule(seed, ROUNDS), *ALWAYS]), tmp_path, print)

    assert [str(one) for one in result.violations] == []
    assert sum(map(len, result.recoveries.values())) >= ROUNDS
    assert result.states["succeeded"] > 100
    assert result.callbacks > 10
    assert (tmp_path / "history.jsonl").stat().st_size > 10_000


def test_seed_replays_its_faults() -> None:
    assert faults.schedule(5, 40) == faults.schedule(5, 40)
    assert faults.schedule(5, 40) != faults.schedule(6, 40)


@pytest.mark.parametrize("at_once", [1, 1.5, 3])
def test_so_many_are_broken_at_once_and_no_target_twice(at_once: float) -> None:
    rounds = [[fault.target for fault in one] for one in faults.schedule(5, 400, at_once=at_once)]
    assert all(len(targets) == len(set(targets)) for targets in rounds)
    assert at_once * 0.93 <= sum(map(len, rounds)) / 400 <= at_once + 0.1


def test_every_fault_comes_before_any_comes_twice() -> None:
    planned = [fault for one in faults.schedule(5, 600) for fault in one]

    met = {(fault.kind, fault.target) for fault in planned}

    assert met == set(faults.CATALOGUE)
