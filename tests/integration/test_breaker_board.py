"""The breakers in PostgreSQL: the same machine as the pure one, and exactly one probe."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine

from models.breaker import (
    CLOSED,
    FIRST_REST,
    PROBE_LEASE,
    THRESHOLD,
    BreakerBoard,
    BreakerState,
    after_failure,
    after_success,
    phase,
)
from models.breaker import Phase as BreakerPhase
from models.tables import breakers, metadata

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
HOST = "hooks.example.com:443"
SECOND = timedelta(seconds=1)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_engine(database_url, pool_size=16)
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(breakers.delete())
    yield engine
    engine.dispose()


def fail(engine: Engine, times: int = 1, now: datetime = NOW, *, is_probe: bool = False) -> None:
    for _ in range(times):
        with engine.begin() as connection:
            BreakerBoard(connection).record_failure(HOST, now, is_probe=is_probe)


def claim(engine: Engine, now: datetime) -> bool:
    with engine.begin() as connection:
        return BreakerBoard(connection).claim_probe(HOST, now)


def state(engine: Engine) -> BreakerState:
    with engine.begin() as connection:
        return BreakerBoard(connection).states().get(HOST, CLOSED)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # the table is emptied by hand
@given(
    st.lists(
        st.tuples(st.sampled_from(["failure", "probe failure", "success"]), st.integers(0, 400)), max_size=14
    )
)
def test_stored_breaker_agrees_with_the_pure_one(engine: Engine, history: list[tuple[str, int]]) -> None:
    expected, now = CLOSED, NOW
    with engine.begin() as connection:
        connection.execute(breakers.delete())
        board = BreakerBoard(connection)
        for event, seconds in history:
            now += timedelta(seconds=seconds)
            if event == "success":
                board.record_success(HOST)
                expected = after_success()
            else:
                is_probe = event == "probe failure"
                board.record_failure(HOST, now, is_probe=is_probe)
                expected = after_failure(expected, now, is_probe=is_probe)
            assert board.states().get(HOST, CLOSED) == expected


def test_long_outage_rests_as_the_pure_machine_says(engine: Engine) -> None:
    expected = CLOSED
    for probe in range(THRESHOLD + 6):
        fail(engine, now=NOW + probe * SECOND, is_probe=True)
        expected = after_failure(expected, NOW + probe * SECOND, is_probe=True)

        assert state(engine) == expected


def test_failures_at_the_same_moment_are_all_counted(engine: Engine) -> None:
    start = Barrier(THRESHOLD)

    def work(_: int) -> None:
        start.wait()
        fail(engine)

    with ThreadPoolExecutor(THRESHOLD) as pool:
        list(pool.map(work, range(THRESHOLD)))

    assert phase(state(engine), NOW) is BreakerPhase.OPEN


def test_exactly_one_of_many_claims_the_probe(engine: Engine) -> None:
    fail(engine, THRESHOLD)
    start = Barrier(12)

    def work(_: int) -> bool:
        start.wait()
        return claim(engine, NOW + FIRST_REST)

    with ThreadPoolExecutor(12) as pool:
        claims = list(pool.map(work, range(12)))

    assert claims.count(True) == 1


def test_probe_cannot_be_claimed_before_its_time_nor_while_closed(engine: Engine) -> None:
    assert not claim(engine, NOW)
    fail(engine)
    assert not claim(engine, NOW)
    fail(engine, THRESHOLD - 1)

    assert not claim(engine, NOW + FIRST_REST - SECOND)
    assert claim(engine, NOW + FIRST_REST)


def test_claim_of_a_dead_prober_runs_out(engine: Engine) -> None:
    fail(engine, THRESHOLD)
    due = NOW + FIRST_REST
    assert claim(engine, due)

    assert not claim(engine, due + PROBE_LEASE - SECOND)
    assert claim(engine, due + PROBE_LEASE)


def test_success_of_the_probe_closes_and_leaves_no_row(engine: Engine) -> None:
    fail(engine, THRESHOLD)

    with engine.begin() as connection:
        BreakerBoard(connection).record_success(HOST)

    with engine.begin() as connection:
        assert BreakerBoard(connection).states() == {}


def test_probe_of_one_dependency_leaves_the_others_theirs(engine: Engine) -> None:
    fail(engine, THRESHOLD)
    with engine.begin() as connection:
        for _ in range(THRESHOLD):
            BreakerBoard(connection).record_failure("other.example.com:443", NOW)

    assert claim(engine, NOW + FIRST_REST)

    with engine.begin() as connection:
        assert BreakerBoard(connection).claim_probe("other.example.com:443", NOW + FIRST_REST)


def test_one_dependency_says_nothing_about_another(engine: Engine) -> None:
    fail(engine, THRESHOLD)

    with engine.begin() as connection:
        board = BreakerBoard(connection)
        board.record_failure("other.example.com:443", NOW)

        assert board.states(["other.example.com:443", "third:443"]) == {
            "other.example.com:443": BreakerState(failures=1)
        }
        assert set(board.states()) == {HOST, "other.example.com:443"}
