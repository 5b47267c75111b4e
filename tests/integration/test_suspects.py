"""Suspects in company, and in want of a lane: no batch dies of one, none is blamed for what it did not do."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, exc, text

from models.database import Database
from models.errors import Contention, DatabaseUnavailable
from models.job import Priority
from models.retry import RetryPolicy
from tasks import applier as applier_module
from tasks.applier import MAX_CRASHES, Applied, Applier
from tasks.crash_attempts import CrashAttempts
from tests.integration.test_applier import Killed, appended, killing, statements
from tests.kit.platform import Platform


def crashed(platform: Platform) -> UUID:
    """A job at which a worker of another machine died."""
    (job,) = platform.accept(platform.create())
    with platform.database.transaction() as connection:
        platform.ledger.record_crash_attempt(connection, job, "another:1")
    return job


def crashes(platform: Platform, job: UUID) -> tuple[int, list[dict[str, Any]] | None]:
    """How many attempts on record count against a job, and their log."""
    [(count, log)] = platform.rows("SELECT crashes, crash_log FROM jobs WHERE id = :id", id=job)
    return count, log


# ---- in company ----------------------------------------------------------------------


def test_job_that_killed_a_worker_fills_no_batch_of_others(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    killer = crashed(platform)
    (named,) = platform.accept(platform.create())
    killing(platform, monkeypatch, killer).apply([named], fill_with=Priority.NORMAL)
    assert platform.states([named, killer]) == ["succeeded", "queued"]
    assert crashes(platform, killer)[0] == 1


def test_job_that_killed_a_worker_is_tried_after_the_batch_and_on_record(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    killer = crashed(platform)
    (other,) = platform.accept(platform.create())
    with pytest.raises(Killed):
        killing(platform, monkeypatch, killer).apply([killer, other])
    assert platform.states([other, killer]) == ["succeeded", "queued"]
    assert crashes(platform, killer)[0] == 2


def test_lane_of_a_job_that_killed_a_worker_is_tried_on_record_too(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job behind it is no suspect, and brings its lane into the batch of others."""
    killer = crashed(platform)
    platform.accept(*appended(platform, platform.job(killer).resource_id, 1))
    (named,) = platform.accept(platform.create())
    with pytest.raises(Killed):
        killing(platform, monkeypatch, killer).apply([named], fill_with=Priority.NORMAL)
    assert platform.states([named, killer]) == ["succeeded", "queued"]
    assert crashes(platform, killer)[0] == 2


def test_job_that_killed_a_worker_is_tried_on_record_whatever_its_message_says(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    killer = crashed(platform)
    with pytest.raises(Killed):
        killing(platform, monkeypatch, killer)._apply_alone(killer, Applied())
    assert crashes(platform, killer)[0] == 2


# ---- in want of a lane ---------------------------------------------------------------


@pytest.fixture
def in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applier_module, "LANE_PATIENCE", timedelta(milliseconds=20))


@contextmanager
def stealing(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, applier: Applier, *, with_row: bool = False
) -> Iterator[Connection]:
    """Whenever ``applier`` has put an attempt on record, another worker takes its lane in a block."""
    may_try = applier._may_try
    with platform.database.transaction() as thief:

        def try_and_lose(job: Any, *rest: Any) -> bool:
            may = may_try(job, *rest)
            thief.execute(text("SELECT pg_advisory_xact_lock(:lane)"), {"lane": job.lane})
            if with_row:
                platform.ledger.open_jobs(thief, [job.lane], 1)
            return may

        monkeypatch.setattr(applier, "_may_try", try_and_lose)
        yield thief
    monkeypatch.setattr(applier, "_may_try", may_try)


@pytest.mark.usefixtures("in_haste")
def test_suspect_whose_lane_is_taken_before_its_try_is_no_killer(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    (suspect,) = platform.accept(platform.create())
    for _ in range(MAX_CRASHES):
        applier = platform.applier()
        with stealing(platform, monkeypatch, applier):
            applier.apply([suspect], are_suspect=True)
        assert crashes(platform, suspect) == (0, None)
    platform.applier().apply([suspect], are_suspect=True)
    assert platform.states([suspect]) == ["succeeded"]


@pytest.mark.usefixtures("in_haste")
def test_attempt_that_cannot_be_taken_back_yet_is_with_the_next_message(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    (suspect,) = platform.accept(platform.create())
    applier = platform.applier()
    with stealing(platform, monkeypatch, applier, with_row=True):
        applier.apply([suspect], are_suspect=True)
        assert crashes(platform, suspect)[0] == 1
    applier.apply([])
    assert crashes(platform, suspect) == (0, None)


@pytest.mark.usefixtures("in_haste")
def test_attempts_that_are_still_to_be_taken_back_do_not_count(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    (suspect,) = platform.accept(platform.create())
    applier = platform.applier()

    def refuse(*_: Any) -> None:
        raise Contention("the row is locked")

    monkeypatch.setattr(platform.ledger, "take_back_crash_attempt", refuse)
    for _ in range(MAX_CRASHES):
        with stealing(platform, monkeypatch, applier):
            applier.apply([suspect], are_suspect=True)
    assert crashes(platform, suspect)[0] == MAX_CRASHES
    applier.apply([suspect], are_suspect=True)
    assert platform.states([suspect]) == ["succeeded"]


@pytest.mark.usefixtures("in_haste")
@pytest.mark.usefixtures("in_haste")
def test_nobody_waits_long_for_an_attempt_that_cannot_be_taken_back(
    platform: Platform, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = Database(database_url, lock_timeout=timedelta(seconds=60))
    ledger = platform.ledger
    (job,) = platform.accept(platform.create())
    owing = CrashAttempts(patient, ledger)
    with platform.database.transaction() as connection:
        attempt = owing.record(connection, job)
    owing._outlived.add(attempt)
    with platform.database.transaction() as holder:
        holder.execute(text("SELECT 1 FROM jobs WHERE id = :id FOR UPDATE"), {"id": job})
        began = time.monotonic()
        owing.take_back()
        assert time.monotonic() - began < 20
    assert owing.count(job) == 1
    owing.take_back()
    assert crashes(platform, job) == (0, None)
    patient.close()


def test_death_of_a_worker_counts_beside_what_another_takes_back(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    suspect = crashed(platform)
    applier = platform.applier()
    with stealing(platform, monkeypatch, applier, with_row=True):
        applier.apply([suspect], are_suspect=True)
    with pytest.raises(Killed):
        killing(platform, monkeypatch, suspect).apply([suspect], are_suspect=True)
    applier.apply([])
    count, log = crashes(platform, suspect)
    assert (count, len(log or ()), (log or [{}])[0]["worker"]) == (2, 2, "another:1")


@pytest.mark.usefixtures("in_haste")
@pytest.mark.parametrize("are_suspect", [False, True])
def test_wait_for_a_lane_in_vain_is_no_attempt(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, *, are_suspect: bool
) -> None:
    """Who held it is done the moment that the wait is over: the verdict would find it free."""
    submission = platform.create()
    (job,) = platform.accept(submission)
    applier = platform.applier(RetryPolicy(max_attempts=1))
    lock_head, looks = applier._lock_head, iter(range(9))
    last_look = 2 if are_suspect else 1
    with platform.database.engine.connect() as thief:

        def wait_in_vain(connection: Connection, job_id: UUID) -> Any:
            if next(looks) == last_look:
                thief.execute(text("SELECT pg_advisory_xact_lock(:lane)"), {"lane": submission.lane})
            try:
                return lock_head(connection, job_id)
            except exc.DBAPIError:
                thief.rollback()
                raise

        monkeypatch.setattr(applier, "_lock_head", wait_in_vain)
        applier._apply_alone(job, applier_module.Applied(), is_suspect=are_suspect)
    assert next(looks) > last_look
    assert (platform.job(job).state, platform.job(job).attempt) == ("queued", 0)
    assert crashes(platform, job) == (0, None)
    platform.applier().apply([job], are_suspect=are_suspect)
    assert (platform.job(job).state, platform.job(job).attempt) == ("succeeded", 1)


def test_suspect_whose_database_goes_away_before_its_try_is_no_killer(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    (suspect,) = platform.accept(platform.create())
    applier = platform.applier()
    may_try = applier._may_try

    def refuse(*_: Any) -> None:
        raise DatabaseUnavailable("the database is not reachable")

    def try_and_lose(*arguments: Any) -> bool:
        assert may_try(*arguments)
        away.setattr(platform.database, "transaction", refuse)
        return True

    with monkeypatch.context() as away:
        away.setattr(applier, "_may_try", try_and_lose)
        with pytest.raises(DatabaseUnavailable):
            applier.apply([suspect], are_suspect=True)
    assert crashes(platform, suspect)[0] == 1
    applier.apply([])
    assert crashes(platform, suspect) == (0, None)
    applier.apply([suspect], are_suspect=True)
    assert platform.states([suspect]) == ["succeeded"]


def test_suspect_that_takes_the_database_down_at_each_try_ends_dead(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    (suspect,) = platform.accept(platform.create())
    applier = platform.applier()

    def lose(connection: Connection, _: Any) -> Any:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        platform.rows("SELECT pg_terminate_backend(:pid, 5000)", pid=pid)
        connection.execute(text("SELECT 1"))

    monkeypatch.setattr(applier, "_run", lose)
    for count in range(1, MAX_CRASHES + 1):
        with pytest.raises(DatabaseUnavailable):
            applier.apply([suspect], are_suspect=True)
        assert crashes(platform, suspect)[0] == count
    applier.apply([suspect], are_suspect=True)
    assert platform.states([suspect]) == ["dead"]
    assert "died or lost the database at each of 3" in (platform.job(suspect).error or {})["message"]


def test_record_whose_commit_is_lost_is_taken_back(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    (suspect,) = platform.accept(platform.create())
    applier = platform.applier()
    may_try = applier._may_try

    def try_and_never_know(*arguments: Any) -> bool:
        assert may_try(*arguments)
        raise DatabaseUnavailable("the answer to the commit never came")

    monkeypatch.setattr(applier, "_may_try", try_and_never_know)
    with pytest.raises(DatabaseUnavailable):
        applier.apply([suspect], are_suspect=True)
    assert crashes(platform, suspect) == (0, None)


def test_suspect_that_another_job_got_before_is_on_record_once(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that was accepted earlier, and whose commit came later."""
    (suspect,) = platform.accept(platform.create())
    applier = platform.applier()
    may_try, late = applier._may_try, list[UUID]()

    def try_and_be_preceded(*arguments: Any) -> bool:
        may = may_try(*arguments)
        if not late:
            late.extend(platform.accept(*appended(platform, platform.job(suspect).resource_id, 1)))
            platform.rows("UPDATE jobs SET position = -1 WHERE id = :id", id=late[0])
        return may

    monkeypatch.setattr(applier, "_may_try", try_and_be_preceded)
    applier.apply([suspect], are_suspect=True)
    assert platform.states([*late, suspect]) == ["failed", "succeeded"]
    assert crashes(platform, suspect)[0] == 1


def test_attempt_that_came_to_its_end_costs_no_statement_more(platform: Platform) -> None:
    (innocent,) = platform.accept(platform.create())
    with statements(platform) as seen:
        platform.applier().apply([innocent], are_suspect=True)
    assert platform.states([innocent]) == ["succeeded"]
    assert [one for one in seen if "crashes - 1" in one] == []
