"""Bugs planted in the real platform are found by running it, each by its own mark."""

from pathlib import Path

import pytest

from deploy.rabbitmq_server import find_rabbitmq
from deploy.redis_server import find_redis
from tests.chaos.bugs import BUGS
from tests.chaos.faults import Fault
from tests.chaos.run import Plan, run
from tests.kit.servers import require

MARKS = {
    "acknowledge-before-commit": "is answered 404",
    "acknowledge-early": "was confirmed by the broker",
    "forget-keys": "two jobs under one key",
    "reverse-lanes": "stands behind",
    "part-effect-and-outcome": "versions by 0 operations",
    "forget-callbacks": "was never announced",
    "change-final-states": "was ('succeeded'",
    "renew-ids": "was announced under",
    "change-bodies": "was announced with",
    "sign-wrongly": "is not signed",
    "show-everything": "is somebody else's",
    "read-stale": "was shown at",
    "leak-descriptors": "descriptors",
    "run-early": "took effect too early",
    "trust-own-clock": "expired too early",
    "leave-out-transitions": "was not told",
    "repeat-events": "again or too late",
    "ignore-conditions": "demanded version",
    "redrive-without-end": "did not end exactly once",
    "disable-sweep": "an open job",
}
TOGETHER = [name for name in MARKS if name != "disable-sweep"]
"""One platform may have them all: their marks tell them apart."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("names", "planned", "rest_seconds"),
    [
        # A reply that is lost makes a client send again, and a worker its callback.
        # Who crashes before its commit has lost what it acknowledged early.
        # With that number the consumer's clock is three hours behind.
        (
            TOGETHER,
            [
                Fault("swallow", "client-api", 3, 7),
                Fault("truncate", "worker-receiver", 4, 1),
                Fault("crash", "before-take-in", 15, 1),
                Fault("behind", "consumer", 20, 4),
            ],
            40,
        ),
        (["disable-sweep"], [Fault("wipe", "rabbitmq", 2, 7)], 12),
    ],
    ids=["together", "disable-sweep"],
)
def test_planted_bug_is_found(
    tmp_path: Path, names: list[str], planned: list[Fault], rest_seconds: float
) -> None:
    require(find_rabbitmq)
    require(find_redis)

    rounds = [[fault] for fault in planned]
    result = run(Plan(15, 3, 40, rounds, ",".join(names), rest_seconds), tmp_path, print)

    found = [str(one) for one in result.violations]
    missed = [name for name in names if not any(MARKS[name] in one for one in found)]
    assert missed == [], found[:40]


def test_every_bug_has_its_mark() -> None:
    assert set(MARKS) == set(BUGS)
