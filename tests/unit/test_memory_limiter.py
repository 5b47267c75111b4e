"""The limiter in memory: its window under a clock of the test's, and its bounds."""

from hypothesis import given
from hypothesis import strategies as st

from api_shim.gate.memory_limiter import MemoryLimiter
from models.quotas import Quota

MINUTE = Quota(10, 60)


class Clock:
    def __init__(self) -> None:
        self.seconds = 1_000.0

    def __call__(self) -> float:
        return self.seconds


def test_requests_leave_the_window_one_after_the_other() -> None:
    clock = Clock()
    limiter = MemoryLimiter(now=clock)
    for _ in range(10):
        assert limiter.count("a", MINUTE).is_allowed
        clock.seconds += 5
    assert limiter.count("a", MINUTE).reset_seconds == 10
    clock.seconds += 10
    assert limiter.count("a", MINUTE).is_allowed
    assert not limiter.count("a", MINUTE).is_allowed


@given(st.lists(st.floats(0, 20), max_size=200))
def test_no_window_ever_holds_more_than_the_quota(gaps: list[float]) -> None:
    clock, passed = Clock(), []
    limiter = MemoryLimiter(now=clock)
    for gap in gaps:
        clock.seconds += gap
        if limiter.count("a", MINUTE).is_allowed:
            passed.append(clock.seconds)
    assert all(later - first > 59 for first, later in zip(passed, passed[10:], strict=False))


def test_what_was_let_pass_elsewhere_counts_but_never_beyond_the_quota() -> None:
    clock = Clock()
    limiter = MemoryLimiter(now=clock)
    for _ in range(25):
        limiter.note("a", MINUTE)
    assert not limiter.count("a", MINUTE).is_allowed
    clock.seconds += 61
    assert limiter.count("a", MINUTE).remaining == 9


def test_strangers_do_not_fill_the_memory() -> None:
    limiter = MemoryLimiter(capacity=100, now=Clock())
    for number in range(10_000):
        limiter.count(str(number), MINUTE)
    assert len(limiter) <= 100


def test_callers_who_went_away_are_forgotten() -> None:
    clock = Clock()
    limiter = MemoryLimiter(now=clock)
    for number in range(1_000):
        limiter.count(str(number), MINUTE)
    clock.seconds += 120
    for number in range(1_000):
        limiter.count(f"late-{number}", MINUTE)
    assert len(limiter) <= 1_001
