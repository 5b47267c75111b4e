"""Cancel, expiry, redrive and apply at once: one end each, and the answer is what really happened."""

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest

from models.errors import Conflict, Contention
from models.ids import new_id
from models.job import JobState
from models.ledger import Outcome
from tests.kit.platform import Platform

JOBS = 240
AT_ONCE = 8
"""Jobs of one transaction: who cancels one of them waits for them all, so they are few."""


def cancelled(platform: Platform, job_id: UUID) -> bool:
    """Cancel; whether the answer says so."""
    for _ in range(20):
        try:
            with platform.database.transaction() as connection:
                platform.ledger.cancel(connection, job_id)
        except Conflict:
            return False
        except Contention:
            continue
        return True
    raise AssertionError("cancelling never came through")


def apply_slices(platform: Platform, ids: list[UUID]) -> None:
    for start in range(0, len(ids), AT_ONCE):
        platform.applier().apply(ids[start : start + AT_ONCE])


def raced(*works: Any) -> list[Any]:
    with ThreadPoolExecutor(len(works)) as threads:
        return [one.result() for one in [threads.submit(work) for work in works]]


@pytest.mark.parametrize("seed", range(3))
def test_cancel_that_races_with_applying_tells_the_truth(platform: Platform, seed: int) -> None:
    creations = [platform.create() for _ in range(JOBS)]
    ids = platform.accept(*creations)
    shuffled = random.Random(seed).sample(ids, JOBS)
    answers, *_ = raced(
        lambda: {one: cancelled(platform, one) for one in shuffled},
        *(lambda part=part: apply_slices(platform, ids[part::3]) for part in range(3)),
    )
    platform.applier().apply(ids)
    for creation in creations:
        job = platform.job(creation.job_id)
        exists = platform.instance(creation.resource_id) is not None
        assert job.state == ("cancelled" if answers[job.id] else "succeeded")
        assert exists is (job.state is JobState.SUCCEEDED)
        assert platform.events(job.id) == ["queued", str(job.state)]
    assert len(set(answers.values())) == 2, "the race was none: everything ended the same way"


def test_expiry_that_races_with_applying_leaves_no_effect_where_it_wins(platform: Platform) -> None:
    creations = [platform.create() for _ in range(JOBS)]
    ids = platform.accept(*creations)
    # most soon, some later: however slow the machine is, there are such as do not expire before their turn
    platform.rows("UPDATE jobs SET expires_at = now() + random() * interval '0.4 s'")
    later = "UPDATE jobs SET expires_at = now() + random() * interval '1 minute' WHERE id = ANY(:ids)"
    platform.rows(later, ids=ids[::6])

    def sweep() -> None:
        for _ in range(100):
            with platform.database.transaction() as connection:
                platform.ledger.expire(connection, 5)

    raced(
        sweep,
        lambda: [platform.applier().apply([one]) for one in ids[::2]],
        lambda: apply_slices(platform, ids[1::2]),
    )
    platform.applier().apply(ids)
    for creation in creations:
        job = platform.job(creation.job_id)
        assert job.is_done
        assert (platform.instance(creation.resource_id) is not None) is (job.state is JobState.SUCCEEDED)
        assert platform.events(job.id) == ["queued", str(job.state)]
        if job.state is JobState.SUCCEEDED:
            assert job.finished_at is not None
            assert job.expires_at is not None
            assert job.finished_at <= job.expires_at
    assert {str(platform.job(one).state) for one in ids} == {"succeeded", "expired"}


def test_redrive_that_races_with_itself_and_with_applying_is_applied_once(platform: Platform) -> None:
    entity = platform.made(platform.create())[0].resource_id
    ids = platform.accept(*(platform.patch(entity, metadata={f"n{n}": n}) for n in range(10)))
    with platform.database.transaction() as connection:
        platform.ledger.finish(
            connection, [Outcome(job_id=one, state=JobState.DEAD, attempt=8) for one in ids]
        )

    def redrive() -> int:
        done = 0
        for one in ids:
            try:
                with platform.database.transaction() as connection:
                    platform.ledger.redrive(connection, {one: None})
                done += 1
            except (Conflict, Contention):
                pass
        return done

    def apply() -> int:
        for _ in range(20):
            platform.applier().apply([*ids, new_id()])
        return 0

    assert sum(raced(redrive, redrive, redrive, apply, apply)) == len(ids)
    platform.applier().apply(ids)
    assert platform.states(ids) == ["succeeded"] * len(ids)
    assert all(platform.events(one) == ["queued", "dead", "queued", "succeeded"] for one in ids)
    found = platform.instance(entity)
    assert found is not None
    assert (found["version"], len(found["metadata"])) == (11, 10)
