"""What a failed attempt leads to."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import (
    ConfigurationError,
    Conflict,
    Contention,
    DatabaseUnavailable,
    Forbidden,
    Invalid,
    NotFound,
    Permanent,
    Unavailable,
)
from models.retry import Die, Fail, Retry, RetryPolicy, reason_of

POLICY = RetryPolicy(max_attempts=5, base=timedelta(seconds=1), cap=timedelta(seconds=6))
errors = st.sampled_from([Contention("x"), DatabaseUnavailable("x"), RuntimeError("x"), KeyError("x")])


def within(seconds: float) -> Retry:
    return Retry(timedelta(seconds=seconds))


@pytest.mark.parametrize(
    ("error", "attempt", "decision"),
    [
        *((refusal("x"), 1, Fail()) for refusal in (Conflict, Forbidden, Invalid, NotFound, Unavailable)),
        (Conflict("x"), 99, Fail()),
        (Permanent("x"), 1, Die()),
        (ConfigurationError("x"), 1, Die()),
        (Contention("x"), 1, within(1)),
        (Contention("x"), 2, within(2)),
        (Contention("x"), 3, within(4)),
        (Contention("x"), 4, within(6)),
        (Contention("x"), 5, Die()),
        (DatabaseUnavailable("x"), 4, within(6)),
        (RuntimeError("x"), 1, within(1)),
        (RuntimeError("x"), 4, within(6)),
        (RuntimeError("x"), 5, Die()),
        (RuntimeError("x"), 1000, Die()),
    ],
    ids=str,
)
def test_decision(error: Exception, attempt: int, decision: object) -> None:
    assert POLICY.decide(error, attempt) == decision


@pytest.mark.parametrize(("chance", "seconds"), [(0.0, 0), (0.25, 1), (1.0, 4)])
def test_jitter_is_full(chance: float, seconds: float) -> None:
    assert within(4).delay(chance) == timedelta(seconds=seconds)


@given(errors, st.integers(1, 100), st.timedeltas(timedelta(0), timedelta(days=1)), st.floats(0, 1))
def test_rest_is_never_negative_and_never_above_the_cap(
    error: Exception, attempt: int, cap: timedelta, chance: float
) -> None:
    policy = RetryPolicy(max_attempts=100, base=timedelta(seconds=3), cap=cap)
    decision = policy.decide(error, attempt)
    if attempt == 100:
        assert decision == Die()
    else:
        assert isinstance(decision, Retry)
        assert timedelta(0) <= decision.delay(chance) <= decision.within <= cap


@pytest.mark.parametrize(
    "malformed",
    [
        {"max_attempts": 0},
        {"max_attempts": 101},
        {"base": timedelta(seconds=-1)},
        {"cap": timedelta(seconds=-1)},
        {"cap": timedelta(days=2)},
    ],
    ids=str,
)
def test_malformed_policy_is_refused_at_the_start(malformed: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="retry policy"):
        RetryPolicy(**malformed)  # type: ignore[arg-type]


def test_reason_tells_of_an_unknown_fault_only_its_kind() -> None:
    assert reason_of(RuntimeError("with a secret inside")) == "RuntimeError"
    assert reason_of(Contention("busy")) == "Contention: busy"
    assert reason_of(Conflict("taken")) == "Conflict: taken"
