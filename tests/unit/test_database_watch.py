"""The breaker of the database: who passes in which phase, and that one probe at a time decides. No server."""

import threading
from collections.abc import Iterator

import psycopg
import pytest

from models import database_watch
from models.breaker import Phase
from models.database_watch import DatabaseWatch
from models.errors import DatabaseUnavailable
from tests.kit.waiting import wait_until

GONE = psycopg.OperationalError("connection refused")
FULL = psycopg.OperationalError("FATAL:  sorry, too many clients already")


class Probe:
    """Answers when it is let, and counts."""

    def __init__(self) -> None:
        self.error: psycopg.Error | None = GONE
        self.let = threading.Event()
        self.calls = 0
        self.at_once = 0
        self.most_at_once = 0

    def __call__(self) -> str:
        self.calls += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.let.wait(5)
        self.at_once -= 1
        if self.error is not None:
            raise self.error
        return "primary:1"


@pytest.fixture
def probe() -> Probe:
    return Probe()


@pytest.fixture
def watch(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> Iterator[DatabaseWatch]:
    monkeypatch.setattr(database_watch, "PROBE_EVERY_SECONDS", 0.02)
    made = DatabaseWatch(probe)
    yield made
    probe.let.set()
    made.close()


def _is_let(watch: DatabaseWatch) -> tuple[bool, bool]:
    """Whether somebody may use a connection that there is, and make a new one."""
    passed = []
    for door in (watch.admit, watch.admit_new):
        try:
            door()
            passed.append(True)
        except DatabaseUnavailable:
            passed.append(False)
    return passed[0], passed[1]


def test_closed_lets_everybody_through(watch: DatabaseWatch) -> None:
    assert watch.phase is Phase.CLOSED
    assert watch.away_seconds is None
    assert _is_let(watch) == (True, True)


def test_one_failed_connection_opens_it_and_nobody_waits_any_more(watch: DatabaseWatch) -> None:
    watch.refused(GONE, began=0.0)
    assert watch.away_seconds is not None
    assert _is_let(watch) == (False, False)


def test_server_that_refuses_in_words_keeps_the_connections_it_has(watch: DatabaseWatch) -> None:
    watch.refused(FULL, began=0.0)
    assert _is_let(watch) == (True, False)


def test_connections_on_which_something_came_meanwhile_go_on(watch: DatabaseWatch) -> None:
    watch.heard()
    watch.refused(GONE, began=0.0)
    assert _is_let(watch) == (True, False)


def test_half_open_has_exactly_one_probe_and_lets_nobody_else_through(
    watch: DatabaseWatch, probe: Probe
) -> None:
    for _ in range(20):
        watch.refused(GONE, began=0.0)
    wait_until(lambda: watch.phase is Phase.HALF_OPEN)
    assert (probe.calls, _is_let(watch)) == (1, (False, False))
    probe.let.set()
    wait_until(lambda: probe.calls > 5)
    assert probe.most_at_once == 1


def test_probe_that_succeeds_closes_it(watch: DatabaseWatch, probe: Probe) -> None:
    watch.refused(GONE, began=0.0)
    probe.error = None
    probe.let.set()
    wait_until(lambda: watch.phase is Phase.CLOSED)
    assert _is_let(watch) == (True, True)


def test_probe_that_fails_opens_it_again(watch: DatabaseWatch, probe: Probe) -> None:
    watch.refused(GONE, began=0.0)
    probe.let.set()
    wait_until(lambda: probe.calls > 2)
    assert watch.away_seconds is not None
    assert _is_let(watch) == (False, False)


def test_closed_watch_probes_no_more(watch: DatabaseWatch, probe: Probe) -> None:
    probe.let.set()
    watch.refused(GONE, began=0.0)
    wait_until(lambda: probe.calls > 0)
    watch.close()
    calls = probe.calls
    assert not [one for one in threading.enumerate() if one is watch._thread]
    assert probe.calls == calls
