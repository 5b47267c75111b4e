"""Attempts and their history, a policy of a resource's own, and what becomes of jobs behind a dead one."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from models.ids import new_id
from models.job import Operation
from models.registry import Resource
from models.retry import RetryPolicy
from tests.kit.platform import Platform
from tests.kit.tickets import BROKEN


def bury(platform: Platform, *submissions: Any) -> list[Any]:
    """Accept jobs of which the first is broken, and try them until all are done."""
    ids = platform.accept(*submissions)
    for _ in range(3):
        platform.applier().apply(ids)
    return [platform.job(one) for one in ids]


def ticket(platform: Platform) -> Any:
    return platform.made(platform.ticket(str(new_id()), note="first"))[0].resource_id


def test_history_of_attempts_has_reason_and_time(platform: Platform) -> None:
    before = datetime.now(UTC)
    (job,) = bury(platform, platform.ticket(str(new_id()), note=BROKEN))
    assert job.state == "dead"
    attempts = job.document()["attempts"]
    assert [one["attempt"] for one in attempts] == [1, 2, 3]
    assert {one["reason"] for one in attempts} == {"RuntimeError"}
    moments = [datetime.fromisoformat(one["at"]) for one in attempts]
    assert before - timedelta(seconds=5) < moments[0] <= moments[1] <= moments[2]
    assert "secret" not in str(job.document())


def test_job_that_succeeds_at_once_has_no_history(platform: Platform) -> None:
    (job,) = platform.made(platform.create())
    assert "attempts" not in job.document()


def test_only_the_latest_attempts_are_kept(platform: Platform) -> None:
    (job,) = platform.accept(platform.ticket(str(new_id()), note=BROKEN))
    applier = platform.applier(RetryPolicy(max_attempts=60, base=timedelta(0)))
    for _ in range(55):
        applier.apply([job])
    attempts = platform.job(job).attempts
    assert attempts is not None
    assert [one["attempt"] for one in attempts] == list(range(6, 56))


def test_resources_own_policy_decides(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    known = platform.registry["tickets"]
    own = Resource(replace(known.type, retry=RetryPolicy(max_attempts=1)), known.service, known.repository)
    monkeypatch.setitem(platform.registry._resources, "tickets", own)
    (job,) = platform.accept(platform.ticket(str(new_id()), note=BROKEN))
    platform.applier().apply([job])
    assert (platform.job(job).state, platform.job(job).attempt) == ("dead", 1)


# ---- behind a dead job ---------------------------------------------------------------


def test_successor_whose_precondition_still_holds_is_applied(platform: Platform) -> None:
    one = ticket(platform)
    dead, free, guarded = bury(
        platform,
        platform.patch_ticket(one, note=BROKEN),
        platform.patch_ticket(one, assignee="Ada"),
        platform.submission(Operation.PATCH, one, {"assignee": "Bob"}, resource="tickets", if_match=2),
    )
    assert [dead.state, free.state, guarded.state] == ["dead", "succeeded", "succeeded"]
    assert [free.version, guarded.version] == [2, 3]


@pytest.mark.parametrize(
    "kind", ["version that was never made", "instance that was never made", "instance that was not deleted"]
)
def test_successor_whose_precondition_a_dead_job_did_not_bring_about_fails_with_its_reason(
    platform: Platform, kind: str
) -> None:
    number = str(new_id())
    if kind == "version that was never made":
        one = ticket(platform)
        batch = [
            platform.patch_ticket(one, note=BROKEN),
            platform.submission(Operation.PATCH, one, {"assignee": "Bob"}, resource="tickets", if_match=2),
        ]
    elif kind == "instance that was never made":
        creation = platform.ticket(number, note=BROKEN)
        batch = [creation, platform.patch_ticket(creation.resource_id, assignee="Bob")]
    else:
        one = ticket(platform)
        batch = [
            platform.patch_ticket(one, note=BROKEN),
            platform.submission(Operation.CREATE, one, {"number": number}, resource="tickets"),
        ]
    dead, successor = bury(platform, *batch)
    assert (dead.state, successor.state) == ("dead", "failed")
    assert successor.error["status"] == 409
    assert successor.error["error"] == "Conflict"
    assert successor.error["reason"] == "predecessorFailed"
    assert successor.error["predecessor"] == str(dead.id)


def test_dead_job_of_somebody_else_is_blamed_without_its_id(platform: Platform) -> None:
    one = ticket(platform)
    admins = platform.submission(
        Operation.PATCH, one, {"note": BROKEN}, resource="tickets", by=platform.admin
    )
    theirs, successor = bury(
        platform,
        admins,
        platform.submission(Operation.PATCH, one, {"assignee": "Bob"}, resource="tickets", if_match=2),
    )
    assert (theirs.state, successor.state) == ("dead", "failed")
    assert successor.error["reason"] == "predecessorFailed"
    assert "predecessor" not in successor.error
    assert str(theirs.id) not in str(successor.error)


def test_version_that_somebody_else_passed_is_no_predecessors_fault(platform: Platform) -> None:
    one = ticket(platform)
    jobs = bury(
        platform,
        platform.patch_ticket(one, note=BROKEN),
        platform.patch_ticket(one, assignee="Ada"),
        platform.submission(Operation.PATCH, one, {"assignee": "Bob"}, resource="tickets", if_match=1),
    )
    assert [job.state for job in jobs] == ["dead", "succeeded", "failed"]
    assert jobs[2].error["status"] == 412
    assert "reason" not in jobs[2].error


def test_job_accepted_after_the_death_is_not_blamed_on_it(platform: Platform) -> None:
    one = ticket(platform)
    bury(platform, platform.patch_ticket(one, note=BROKEN))
    (later,) = platform.made(
        platform.submission(Operation.PATCH, one, {"assignee": "Bob"}, resource="tickets", if_match=2)
    )
    assert later.error is not None
    assert (later.error["status"], later.error.get("reason")) == (412, None)


# ---- the fence at the commit ---------------------------------------------------------


def test_job_that_expires_while_it_is_applied_ends_expired_and_leaves_no_effect(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    entity = platform.made(platform.create("before"))[0].resource_id
    (job,) = platform.accept(platform.patch(entity, name="too late"))
    applier = platform.applier()
    run = applier._run
    with platform.database.transaction() as connection:
        connection.execute(
            text("UPDATE jobs SET expires_at = clock_timestamp() + interval '150 ms' WHERE id = :id"),
            {"id": job},
        )
    monkeypatch.setattr(applier, "_run", lambda connection, jobs: slowly(run, connection, jobs))
    applier.apply([job])
    assert platform.job(job).state == "expired"
    assert platform.events(job) == ["queued", "expired"]
    assert platform.instance(entity)["name"] == "before"  # type: ignore[index]


def slowly(run: Any, connection: Any, jobs: Any) -> Any:
    """Apply, and commit only after 300 ms."""
    outcomes = run(connection, jobs)
    connection.execute(text("SELECT pg_sleep(0.3)"))
    return outcomes
