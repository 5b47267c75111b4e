"""The circuit breaker as a pure state machine."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.breaker import (
    CLOSED,
    FIRST_REST,
    LONGEST_REST,
    THRESHOLD,
    BreakerState,
    Phase,
    after_failure,
    after_success,
    phase,
    rest_after,
)

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def failed(times: int, now: datetime = NOW) -> BreakerState:
    state = CLOSED
    for _ in range(times):
        state = after_failure(state, now)
    return state


def test_stays_closed_below_the_threshold() -> None:
    state = failed(THRESHOLD - 1)

    assert state == BreakerState(failures=THRESHOLD - 1)
    assert phase(state, NOW) is Phase.CLOSED


def test_opens_at_the_threshold_for_thirty_seconds() -> None:
    state = failed(THRESHOLD)

    assert state == BreakerState(THRESHOLD, opened_at=NOW, probe_at=NOW + FIRST_REST)
    assert phase(state, NOW + FIRST_REST - SECOND) is Phase.OPEN


def test_is_half_open_from_the_moment_of_the_probe() -> None:
    state = failed(THRESHOLD)

    assert phase(state, NOW + FIRST_REST) is Phase.HALF_OPEN


def test_failed_probe_rests_longer_and_keeps_the_time_of_opening() -> None:
    later = NOW + FIRST_REST

    state = after_failure(failed(THRESHOLD), later, is_probe=True)

    assert state == BreakerState(THRESHOLD + 1, opened_at=NOW, probe_at=later + 2 * FIRST_REST)


def test_late_failure_of_what_was_in_flight_does_not_lengthen_the_rest() -> None:
    state = failed(THRESHOLD)

    assert after_failure(state, NOW + SECOND) == state


def test_success_closes_and_forgets() -> None:
    assert after_success() == BreakerState()
    assert phase(after_success(), NOW) is Phase.CLOSED


@pytest.mark.parametrize(
    ("failures", "seconds"), [(5, 30), (6, 60), (7, 120), (8, 240), (9, 300), (10, 300), (10**6, 300)]
)
def test_rest_doubles_up_to_five_minutes(failures: int, seconds: int) -> None:
    assert rest_after(failures) == timedelta(seconds=seconds)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 1000))))
def test_open_is_always_bounded_and_dated(history: list[tuple[bool, int]]) -> None:
    state, now = CLOSED, NOW
    for is_probe, seconds in history:
        now += timedelta(seconds=seconds)
        state = after_failure(state, now, is_probe=is_probe)
        assert (state.probe_at is None) == (state.opened_at is None) == (state.failures < THRESHOLD)
        if state.probe_at is not None:
            assert state.opened_at is not None
            assert state.opened_at <= now
            assert state.probe_at - now <= LONGEST_REST
