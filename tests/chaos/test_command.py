"""What ``waybill chaos`` prints of a run."""

from collections import Counter

from tests.chaos import failover
from tests.chaos.checker import Violation
from tests.chaos.command import GOALS, summary
from tests.chaos.faults import CATALOGUE
from tests.chaos.ledger import Table
from tests.chaos.run import Result
from tests.chaos.stopwatch import Pace


def _result(recoveries: dict[str, list[float]], pace: Pace | None = None) -> Result:
    return Result(
        violations=[Violation("order", "b before a")],
        recoveries=recoveries,
        states=Counter(succeeded=7, failed=1),
        outcomes=Counter(ok=8),
        callbacks=3,
        changes=7,
        rest_seconds=2,
        requests=20,
        rate=7.6,
        pace=pace,
        memory={"api": [100 << 20, 110 << 20, 105 << 20]},
        tables={"jobs": Table(30 << 20, 20 << 20)},
    )


def test_recoveries_are_held_against_their_goals() -> None:
    recoveries = {
        "kill worker": [1.0, 2.5],
        "kill pool": [3.0],
        "kill rabbitmq": [7.0],
        "immediate postgres": [4.0],
        "stop postgres": [6.0],
        "swallow api-postgres": [20.0],
        "wipe rabbitmq": [30.0],
        "delay client-api": [99.0],
    }

    told = [line for line in summary(_result(recoveries)) if "goal" in line]

    assert told == [
        "  a worker killed: recovered in at most 3.0 s, 3 times (goal: 15 s)",
        "  a broker killed: recovered in at most 7.0 s, 1 times (goal: 15 s)",
        "  PostgreSQL away: recovered in at most 6.0 s, 2 times (goal: 10 s)",
        "  a silent peer: recovered in at most 20.0 s, 2 times (goal: 30 s)",
        "  a broker wiped: recovered in at most 30.0 s, 1 times (goal: 60 s)",
    ]


def test_every_goal_has_faults_in_the_catalogue() -> None:
    names = [f"{kind} {target}" for kind, target in (*CATALOGUE, *failover.CATALOGUE)]
    assert all(any(belongs(name) for name in names) for _, _, belongs in GOALS)


def test_paces_memory_and_violations_are_told() -> None:
    told = "\n".join(summary(_result({"kill api": [1.0]}, Pace(12, 1, 0.02, 0.3, 0.4))))

    assert "faults: 1, of 1 kinds" in told
    assert "jobs: 8 (7 succeeded, 1 failed)" in told
    assert "20 timed, of them 12 not within 30 s of a fault: 1 errors, median 20 ms, p95 300 ms" in told
    assert "memory of api (MiB; at first, in the quarters, at rest): 100 110 105" in told
    assert "table jobs: 30 MiB, 20 once it is written anew" in told
    assert told.endswith("VIOLATION order: b before a\nviolations: 1")


def test_run_that_was_never_left_alone_has_no_pace() -> None:
    assert any("20 timed, all within 30 s of a fault" in line for line in summary(_result({})))


def test_requests_are_told_with_their_rate() -> None:
    told = [line for line in summary(_result({})) if line.startswith("requests: 8 a second; 20 timed")]

    assert len(told) == 1
