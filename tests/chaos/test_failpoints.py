"""Crashes on each side of every commit, publish, acknowledgement and send of the real platform."""

from pathlib import Path

import pytest

from deploy.rabbitmq_server import find_rabbitmq
from deploy.redis_server import find_redis
from models.failpoints import points
from tests.chaos import crashes
from tests.chaos.run import Plan, run
from tests.kit.servers import require

SEED, PAIRS, RATE = 33, 4, 12


@pytest.mark.timeout(3600)  # each of the waits in it has a bound of its own
def test_promise_holds_though_somebody_crashes_at_every_failpoint(tmp_path: Path) -> None:
    require(find_rabbitmq)
    require(find_redis)
    rounds = [*crashes.singles(SEED), *crashes.pairs(SEED, PAIRS)]

    result = run(Plan(0, SEED, RATE, rounds, is_hurried=True), tmp_path, print)

    assert [str(one) for one in result.violations] == []
    assert result.unreached == []
    assert sorted(result.crashed) == sorted(points())
    assert result.states["succeeded"] > 100
