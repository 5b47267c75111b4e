"""The pruner: prunes in the background, gives way to others, tells what it did, and stops."""

import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text

from models.retention import LOCK, Retention
from tasks.pruner import Pruner
from tests.kit.ageing import many_finished
from tests.kit.platform import Platform
from tests.kit.waiting import wait_until

KEPT = timedelta(days=30)


def measured(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.fixture
def pruner(platform: Platform) -> Iterator[Pruner]:
    retention = Retention(platform.database, finished=KEPT, audit=KEPT, batch=50)
    made = Pruner(retention, period=timedelta(milliseconds=50), jitter=lambda: 0.5)
    yield made
    made.stop()


def jobs(platform: Platform) -> int:
    count: int = platform.rows("SELECT count(*) FROM jobs")[0][0]
    return count


def test_it_prunes_in_the_background_until_stopped(platform: Platform, pruner: Pruner) -> None:
    many_finished(platform, 200)
    pruner.start()
    wait_until(lambda: jobs(platform) == 0)
    many_finished(platform, 20, timedelta(days=31))
    wait_until(lambda: jobs(platform) == 0)
    pruner.stop()
    assert not pruner._thread.is_alive()


def test_it_waits_while_another_prunes(platform: Platform, pruner: Pruner) -> None:
    many_finished(platform, 20)
    last_run = measured("waybill_retention_last_run_timestamp_seconds")
    tried = threading.Event()
    prune = pruner.prune

    def try_to_prune() -> None:
        try:
            prune()
        finally:
            tried.set()

    pruner.prune = try_to_prune  # type: ignore[method-assign]
    with platform.database.transaction() as other:
        other.execute(text("SELECT pg_advisory_xact_lock(:a, :b)"), dict(zip("ab", LOCK, strict=True)))
        pruner.start()
        assert tried.wait(10)
        assert jobs(platform) == 20
        assert measured("waybill_retention_last_run_timestamp_seconds") == last_run
    wait_until(lambda: jobs(platform) == 0)


def test_stop_ends_it_between_two_batches(platform: Platform, pruner: Pruner) -> None:
    many_finished(platform, 200)
    pruner._stopping.set()
    pruner.prune()
    assert jobs(platform) > 0


def test_what_it_did_is_measured(platform: Platform, pruner: Pruner) -> None:
    before = measured("waybill_pruned_rows_total", table="job_events")
    many_finished(platform, 60)
    pruner.prune()
    assert measured("waybill_pruned_rows_total", table="job_events") - before == 120
    assert measured("waybill_retention_last_run_timestamp_seconds") > 1e9
    assert measured("waybill_retention_behind_seconds") == 0


def test_fault_does_not_end_it(platform: Platform, pruner: Pruner, monkeypatch: pytest.MonkeyPatch) -> None:
    many_finished(platform, 20)
    faults = iter([RuntimeError("unforeseen")])
    prune = pruner.prune

    def fail_once() -> None:
        for fault in faults:
            raise fault
        prune()

    monkeypatch.setattr(pruner, "prune", fail_once)
    pruner.start()
    wait_until(lambda: jobs(platform) == 0)
