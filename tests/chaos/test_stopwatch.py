"""What the stopwatch counts, and what it leaves out."""

import pytest

from tests.chaos.stopwatch import Pace, Stopwatch

_BROKEN = [
    {"at": 100.0, "event": "fault"},
    {"at": 110.0, "event": "healed"},
    {"at": 120.0, "event": "fault"},
    {"at": 121.0, "event": "healed"},
]


def _timed(*asked_and_took: tuple[float, float], is_error: bool = False) -> Stopwatch:
    stopwatch = Stopwatch()
    for asked, took in asked_and_took:
        stopwatch.note(asked, took, is_error=is_error)
    return stopwatch


def test_paces_are_those_of_all_where_nothing_was_broken() -> None:
    stopwatch = _timed(*((float(n), n / 100) for n in range(100)))
    assert stopwatch.pace([]) == Pace(100, 0, 0.5, 0.95, 0.99)


@pytest.mark.parametrize(
    ("asked", "took", "counts"),
    [
        (50, 1, True),
        (99.5, 1, False),  # it broke while this one waited
        (105, 1, False),
        (115, 1, False),
        (150.9, 0.1, False),  # 30 s after the last healing, which is the second's
        (151.1, 0.1, True),
    ],
)
def test_what_a_fault_may_have_met_is_left_out(asked: float, took: float, counts: bool) -> None:
    assert (_timed((asked, took)).pace(_BROKEN) is not None) is counts


def test_fault_that_was_never_lifted_leaves_out_all_that_came_after() -> None:
    assert _timed((500, 1)).pace([*_BROKEN, {"at": 200.0, "event": "fault"}]) is None


def test_errors_are_counted_where_nothing_was_broken() -> None:
    pace = _timed((1, 1), (105, 1), is_error=True).pace(_BROKEN)
    assert pace is not None
    assert (pace.requests, pace.errors) == (1, 1)


def test_rate_counts_those_that_wait_on_purpose_too() -> None:
    stopwatch = _timed((10, 1), (11, 1))
    stopwatch.note(12, 30, is_error=False, waits=True)
    assert (stopwatch.requests, stopwatch.rate) == (2, 1.5)
    assert Stopwatch().rate == 0
