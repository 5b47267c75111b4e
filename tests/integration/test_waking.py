"""Scheduled jobs whose time has come, on a real PostgreSQL: in the order of their acceptance."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import text

from models.job import Operation, Submission
from tests.kit.platform import Platform

MANY = 100


@pytest.fixture
def due_together(platform: Platform) -> list[UUID]:
    """A creation, a change of what it creates, and its deletion; all due since one moment."""
    creation = platform.create()
    change = platform.patch(creation.resource_id, name="changed")
    wanted = [creation, change, platform.submission(Operation.DELETE, creation.resource_id)]
    ids = platform.accept(*(scheduled(one) for one in wanted))
    platform.rows("UPDATE jobs SET announce_at = now() WHERE id = ANY(:ids)", ids=ids)
    return ids


def scheduled(submission: Submission) -> Submission:
    """It, for tomorrow."""
    object.__setattr__(submission, "run_at", datetime.now(UTC) + timedelta(days=1))
    return submission


def test_those_of_one_time_keep_their_order_whatever_clock_their_ids_are_from(platform: Platform) -> None:
    creation = platform.create()
    change = platform.patch(creation.resource_id, name="changed")
    earlier, later = sorted((creation.job_id, change.job_id))
    object.__setattr__(creation, "job_id", later)
    object.__setattr__(change, "job_id", earlier)
    ids = [*platform.accept(scheduled(creation)), *platform.accept(scheduled(change))]
    platform.rows("UPDATE jobs SET announce_at = now() WHERE id = ANY(:ids)", ids=ids)
    with platform.database.transaction() as connection:
        assert platform.ledger.wake_scheduled(connection, MANY) == 2
    platform.applier().apply(ids)
    assert [platform.job(one).version for one in ids] == [1, 2]


def test_one_that_somebody_has_hold_of_is_not_overtaken_in_its_lane(
    platform: Platform, due_together: list[UUID]
) -> None:
    other = scheduled(platform.create())
    platform.accept(other)
    platform.rows("UPDATE jobs SET announce_at = now() WHERE id = :id", id=other.job_id)
    with platform.database.transaction() as holder:
        holder.execute(text("SELECT 1 FROM jobs WHERE id = :id FOR UPDATE"), {"id": due_together[1]})
        with platform.database.transaction() as connection:
            assert platform.ledger.wake_scheduled(connection, MANY) == 2
    assert platform.states([*due_together, other.job_id]) == ["queued", "scheduled", "scheduled", "queued"]
    with platform.database.transaction() as connection:
        assert platform.ledger.wake_scheduled(connection, MANY) == 2
    platform.applier().apply(due_together)
    assert platform.states(due_together) == ["succeeded"] * 3


def test_nobody_overtakes_one_who_wakes_some_of_them(platform: Platform, due_together: list[UUID]) -> None:
    with platform.database.transaction() as slow:
        assert platform.ledger.wake_scheduled(slow, 1) == 1
        with platform.database.transaction() as quick:
            assert platform.ledger.wake_scheduled(quick, MANY) == 0
        platform.applier().apply(due_together)
    with platform.database.transaction() as connection:
        assert platform.ledger.wake_scheduled(connection, MANY) == 2
    platform.applier().apply(due_together)
    assert platform.states(due_together) == ["succeeded"] * 3
