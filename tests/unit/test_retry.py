"""What a failed attempt leads to."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import Conflict, Contention, DatabaseUnavailable, Forbidden, Invalid, NotFound, Unavailable
from models.retry import Die, Fail, Retry, RetryPolicy

POLICY = RetryPolicy(max_attempts=5, base=timedelta(seconds=1), cap=timedelta(seconds=6))
errors = st.sampled_from([Contention("x"), DatabaseUnavailable("x"), RuntimeError("x"), KeyError("x")])


def longest(_low: float, high: float) -> float:
    return high


def shortest(low: float, _high: float) -> float:
    return low


@pytest.mark.parametrize("refusal", [Conflict, Forbidden, Invalid, NotFound, Unavailable])
@pytest.mark.parametrize("attempt", [1, 5, 99])
def test_business_outcome_is_final_at_once(refusal: type[Exception], attempt: int) -> None:
    assert POLICY.decide(refusal("x"), attempt) == Fail()


@pytest.mark.parametrize(("attempt", "seconds"), [(1, 1), (2, 2), (3, 4), (4, 6)])
def test_rest_doubles_up_to_the_cap(attempt: int, seconds: int) -> None:
    assert POLICY.decide(Contention("x"), attempt, uniform=longest) == Retry(timedelta(seconds=seconds))


def test_unknown_fault_rests_longer_than_a_transient_one() -> None:
    transient = POLICY.decide(Contention("x"), 3, uniform=shortest)
    unknown = POLICY.decide(RuntimeError("x"), 3, uniform=shortest)
    assert (transient, unknown) == (Retry(timedelta(seconds=0.4)), Retry(timedelta(seconds=2)))


@given(errors, st.integers(min_value=5))
def test_attempts_run_out(error: Exception, attempt: int) -> None:
    assert POLICY.decide(error, attempt) == Die()


@given(
    errors,
    st.integers(1, 10_000),
    st.timedeltas(timedelta(0), timedelta(days=1)),
    st.timedeltas(timedelta(0), timedelta(days=7)),
)
def test_rest_is_never_negative_and_never_above_the_cap(
    error: Exception, attempt: int, base: timedelta, cap: timedelta
) -> None:
    decision = RetryPolicy(max_attempts=attempt + 1, base=base, cap=cap).decide(error, attempt)
    assert isinstance(decision, Retry)
    assert timedelta(0) <= decision.delay <= cap
