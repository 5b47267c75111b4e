"""Applying, against a real PostgreSQL: once, in order, in sets, and around every kind of culprit."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from celery.concurrency.asynpool import AsynPool
from sqlalchemy import Connection, event, text

from models import explanation
from models.errors import DatabaseUnavailable
from models.identity.principals import Role
from models.ids import new_id
from models.job import Operation, Priority, Submission, to_json
from models.job_history import JobHistory
from models.retry import RetryPolicy
from tasks import applier as applier_module
from tasks.app import make_app
from tasks.crash_attempts import worker_name
from tasks.runtime import Runtime
from tests.kit.platform import Platform
from tests.kit.tickets import BROKEN

PATIENT = RetryPolicy(max_attempts=3, base=timedelta(hours=1), cap=timedelta(hours=1))


def appended(platform: Platform, entity: UUID, *nonces: int) -> list[Submission]:
    """Patches that each add a member; the members keep the order in which they came."""
    return [platform.patch(entity, metadata={f"n{nonce}": nonce}) for nonce in nonces]


def members(platform: Platform, entity: UUID) -> list[int]:
    found = platform.instance(entity)
    assert found is not None
    return sorted(found["metadata"].values())


@contextmanager
def statements(platform: Platform) -> Iterator[list[str]]:
    """The statements that are executed in a block."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    event.listen(platform.database.engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(platform.database.engine, "before_cursor_execute", note)


@contextmanager
def lane_held(platform: Platform, lane: int) -> Iterator[Connection]:
    """The lane is locked by somebody else for the length of a block."""
    with platform.database.transaction() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lane)"), {"lane": lane})
        yield connection


# ---- once, and in order --------------------------------------------------------------


def test_redelivered_batch_is_applied_once(platform: Platform) -> None:
    ids = platform.accept(platform.create(), platform.create())
    platform.applier().apply(ids)
    again = platform.applier().apply(ids)
    assert again.outcomes == []
    assert platform.states(ids) == ["succeeded", "succeeded"]
    assert [platform.events(one) for one in ids] == [["queued", "succeeded"]] * 2


def test_unknown_and_doubled_ids_do_no_harm(platform: Platform) -> None:
    (one,) = platform.accept(platform.create())
    applied = platform.applier().apply([one, new_id(), one])
    assert [outcome.job_id for outcome in applied.outcomes] == [one]


def test_update_of_an_instance_that_an_earlier_batch_made(platform: Platform) -> None:
    entity = platform.made(platform.create("before"))[0].resource_id
    (patched,) = platform.made(platform.patch(entity, name="after"))
    (replaced,) = platform.made(platform.submission(Operation.REPLACE, entity, {"name": "again"}))
    assert (patched.state, patched.version, replaced.version) == ("succeeded", 2, 3)
    assert platform.instance(entity)["name"] == "again"  # type: ignore[index]


def test_naming_one_job_applies_what_was_accepted_before_it_in_its_lane(platform: Platform) -> None:
    creation = platform.create()
    ids = platform.accept(creation)
    ids += platform.accept(*appended(platform, creation.resource_id, 1, 2, 3))
    platform.applier().apply(ids[-1:])
    assert platform.states(ids) == ["succeeded"] * 4
    assert [platform.job(one).version for one in ids] == [1, 2, 3, 4]


def test_overlapping_announcements_in_four_threads_keep_each_lanes_order(platform: Platform) -> None:
    creations = [platform.create() for _ in range(5)]
    entities = [one.resource_id for one in creations]
    ids = platform.accept(*creations)
    for nonce in range(1, 25):
        batch = [platform.patch(one, name=f"v{nonce}", metadata={f"n{nonce}": nonce}) for one in entities]
        ids += platform.accept(*batch)
    shuffled = random.Random(7)
    calls = [shuffled.sample(ids, 30) for _ in range(24)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda call: platform.applier().apply(call), calls))
    platform.applier().apply(ids)  # what was skipped while its lane was held
    assert platform.states(ids) == ["succeeded"] * len(ids)
    for entity in entities:
        row = platform.instance(entity)
        assert row is not None
        assert (row["version"], row["name"], len(row["metadata"])) == (25, "v24", 24)
    in_lane = "SELECT version FROM jobs WHERE resource_id = :id ORDER BY position"
    assert all(
        [row[0] for row in platform.rows(in_lane, id=entity)] == list(range(1, 26)) for entity in entities
    )


def test_hot_lane_is_folded_into_one_write(platform: Platform) -> None:
    entity = platform.made(platform.create())[0].resource_id
    ids = platform.accept(*appended(platform, entity, *range(100)))
    with statements(platform) as seen:
        platform.applier().apply(ids)
    assert len([one for one in seen if one.startswith("UPDATE") and '"entities"' in one]) == 1
    assert [platform.job(one).version for one in ids] == list(range(2, 102))
    assert platform.result(ids[49])["metadata"] == {f"n{nonce}": nonce for nonce in range(50)}
    assert members(platform, entity) == list(range(100))


def test_versions_continue_through_delete_and_creation_in_one_batch(platform: Platform) -> None:
    entity = new_id()
    batch = [
        platform.create("first", resource_id=entity),
        platform.patch(entity, name="second"),
        platform.submission(Operation.DELETE, entity),
        platform.create("third", resource_id=entity),
        platform.patch(entity, name="fourth"),
    ]
    ids = platform.accept(batch[0])
    ids += platform.accept(*batch[1:])
    platform.applier().apply(ids)
    assert platform.states(ids) == ["succeeded"] * 5
    assert [platform.job(one).version for one in ids] == [1, 2, None, 4, 5]
    again = platform.made(platform.submission(Operation.DELETE, entity), platform.create(resource_id=entity))
    assert [job.version for job in again] == [None, 7]


def test_job_on_a_missing_instance_fails_and_the_next_in_its_lane_goes_on(platform: Platform) -> None:
    entity = platform.made(platform.create())[0].resource_id
    jobs = platform.made(
        platform.submission(Operation.DELETE, entity),
        platform.patch(entity, name="too late"),
        platform.submission(Operation.READ, entity),
        platform.create("again", resource_id=entity),
    )
    assert [job.state for job in jobs] == ["succeeded", "failed", "failed", "succeeded"]
    assert [job.error["status"] for job in jobs[1:3] if job.error] == [404, 404]


def test_read_job_returns_the_instance_at_its_place_in_the_lane(platform: Platform) -> None:
    entity = platform.made(platform.create("old"))[0].resource_id
    read = platform.submission(Operation.READ, entity)
    jobs = platform.made(platform.patch(entity, name="new"), read, platform.patch(entity, name="newer"))
    assert platform.result(jobs[1].id)["name"] == "new"
    assert [job.version for job in jobs] == [2, 2, 3]


def test_stale_version_fails_with_412_and_the_current_version(platform: Platform) -> None:
    entity = platform.made(platform.create())[0].resource_id
    first, second = (
        platform.submission(Operation.PATCH, entity, {"name": name}, if_match=1)
        for name in ("first", "second")
    )
    jobs = platform.made(first, second)
    assert [job.state for job in jobs] == ["succeeded", "failed"]
    assert jobs[1].error is not None
    assert (jobs[1].error["status"], jobs[1].error["currentVersion"]) == (412, 2)


def test_more_jobs_than_a_transaction_takes_are_applied_in_several(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(applier_module, "MAX_JOBS", 10)
    entity = platform.made(platform.create())[0].resource_id
    ids = platform.accept(*appended(platform, entity, *range(35)))
    platform.applier().apply(ids)
    assert platform.states(ids) == ["succeeded"] * 35
    assert members(platform, entity) == list(range(35))


# ---- constraints ---------------------------------------------------------------------


def test_unique_violation_fails_with_409_and_harms_nobody(platform: Platform) -> None:
    number = str(new_id())
    jobs = platform.made(platform.ticket(number), platform.ticket(number), platform.ticket(str(new_id())))
    assert [job.state for job in jobs] == ["succeeded", "failed", "succeeded"]
    assert jobs[1].error is not None
    assert jobs[1].error["status"] == 409
    assert jobs[1].attempt == 1


def test_jobs_behind_a_refused_creation_end_as_they_would_one_by_one(platform: Platform) -> None:
    number, other = str(new_id()), str(new_id())
    platform.made(platform.ticket(number))
    creation = platform.ticket(number)
    ticket = creation.resource_id
    again = platform.submission(Operation.CREATE, ticket, {"number": other}, resource="tickets")
    ids = platform.accept(creation)
    ids += platform.accept(platform.patch_ticket(ticket, note="nothing there"), again)
    ids += platform.accept(platform.patch_ticket(ticket, note="there"))
    platform.applier().apply(ids)
    assert platform.states(ids) == ["failed", "failed", "succeeded", "succeeded"]
    assert [platform.job(one).error["status"] for one in ids[:2]] == [409, 404]  # type: ignore[index]
    assert [platform.job(one).version for one in ids[2:]] == [1, 2]
    assert platform.instance(ticket, "tickets")["note"] == "there"  # type: ignore[index]


def test_update_to_a_taken_value_fails_alone_with_409(platform: Platform) -> None:
    numbers = [str(new_id()) for _ in range(8)]
    tickets = [job.resource_id for job in platform.made(*(platform.ticket(one) for one in numbers))]
    batch = [platform.patch_ticket(one, note="fine") for one in tickets]
    batch[5] = platform.patch_ticket(tickets[5], number=numbers[0])
    jobs = platform.made(*batch)
    assert [job.state for job in jobs] == ["succeeded"] * 5 + ["failed"] + ["succeeded"] * 2
    assert jobs[5].error is not None
    assert jobs[5].error["status"] == 409


def test_value_that_the_database_forbids_fails_with_400(platform: Platform) -> None:
    platform.rows('ALTER TABLE "order-tickets" ADD CONSTRAINT no_free_tickets CHECK (price > 0)')
    try:
        good, bad = platform.made(
            platform.ticket(str(new_id()), price="1"), platform.ticket(str(new_id()), price="0")
        )
    finally:
        platform.rows('ALTER TABLE "order-tickets" DROP CONSTRAINT no_free_tickets')
    assert (good.state, bad.state) == ("succeeded", "failed")
    assert bad.error is not None
    assert bad.error["status"] == 400


# ---- faults --------------------------------------------------------------------------


def test_broken_job_is_split_out_retried_and_at_last_dead_without_a_word_of_the_cause(
    platform: Platform,
) -> None:
    batch = [platform.ticket(str(new_id())) for _ in range(7)]
    batch.insert(3, platform.ticket(str(new_id()), note=BROKEN))
    ids = platform.accept(*batch)
    culprit = ids.pop(3)
    platform.applier().apply([*ids, culprit])
    assert platform.states(ids) == ["succeeded"] * 7
    assert platform.job(culprit).state == "retrying"
    for _ in range(2):
        platform.applier().apply([culprit])
    job = platform.job(culprit)
    assert (job.state, job.attempt) == ("dead", 3)
    assert platform.events(culprit) == ["queued", "retrying", "retrying", "dead"]
    assert job.error is not None
    assert job.error["status"] == 500
    assert "secret" not in str(job.error)


def test_retrying_head_blocks_its_lane_and_death_releases_it(platform: Platform) -> None:
    ticket = platform.made(platform.ticket(str(new_id())))[0].resource_id
    ids = platform.accept(platform.patch_ticket(ticket, note=BROKEN))
    ids += platform.accept(platform.patch_ticket(ticket, note="behind"))
    patient = platform.applier(PATIENT)
    patient.apply(ids)
    patient.apply(ids)
    assert platform.states(ids) == ["retrying", "queued"]
    assert platform.job(ids[0]).attempt == 1
    for _ in range(2):
        platform.rows("UPDATE jobs SET run_at = now() WHERE id = :id", id=ids[0])
        patient.apply(ids[1:])
    assert platform.states(ids) == ["dead", "succeeded"]


def test_blocked_lane_longer_than_a_transaction_does_not_starve_the_others(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(applier_module, "MAX_JOBS", 5)
    ticket = platform.made(platform.ticket(str(new_id())))[0].resource_id
    blocked = platform.accept(platform.patch_ticket(ticket, note=BROKEN))
    platform.applier(PATIENT).apply(blocked)
    blocked += platform.accept(*(platform.patch_ticket(ticket, note="behind") for _ in range(6)))
    (free,) = platform.accept(platform.create())
    platform.applier(PATIENT).apply([*blocked, free])
    assert platform.job(free).state == "succeeded"
    assert platform.states(blocked) == ["retrying"] + ["queued"] * 6


def test_lane_held_elsewhere_is_skipped_and_done_later(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(applier_module, "LANE_PATIENCE", timedelta(milliseconds=20))
    held, free = platform.create(), platform.create()
    ids = platform.accept(held, free)
    with lane_held(platform, held.lane):
        platform.applier().apply(ids)
        assert platform.states(ids) == ["queued", "succeeded"]
    platform.applier().apply(ids)
    assert platform.states(ids) == ["succeeded", "succeeded"]


@pytest.mark.parametrize("are_suspect", [False, True])
def test_suspects_in_a_held_lane_wait_and_their_neighbours_do_not(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, *, are_suspect: bool
) -> None:
    monkeypatch.setattr(applier_module, "LANE_PATIENCE", timedelta(milliseconds=20))
    held, free = platform.create(), platform.create()
    ids = platform.accept(held, free)
    with lane_held(platform, held.lane):
        platform.applier().apply(ids, are_suspect=are_suspect)
        assert platform.states(ids) == ["queued", "succeeded"]


def test_lane_that_is_taken_between_two_looks_is_left_alone(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(applier_module, "LANE_PATIENCE", timedelta(milliseconds=20))
    first, second = platform.create(), platform.create()
    ids = platform.accept(first, second)
    applier = platform.applier()
    look = applier._head_of_lane
    with platform.database.transaction() as thief:

        def look_and_lose(job_id: UUID) -> Any:
            head = look(job_id)
            if job_id == first.job_id:
                thief.execute(text("SELECT pg_advisory_xact_lock(:lane)"), {"lane": first.lane})
            return head

        monkeypatch.setattr(applier, "_head_of_lane", look_and_lose)
        applier.apply(ids, are_suspect=True)
        assert platform.states(ids) == ["queued", "succeeded"]


def test_deadlock_is_retried_at_once(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = platform.accept(platform.create(), platform.create())
    applier = platform.applier()
    run, calls = applier._run, []

    def deadlocked_once(connection: Connection, jobs: Any) -> Any:
        calls.append(len(jobs))
        if len(calls) == 1:
            connection.execute(text("DO $$ BEGIN RAISE SQLSTATE '40P01'; END $$"))
        return run(connection, jobs)

    monkeypatch.setattr(applier, "_run", deadlocked_once)
    applier.apply(ids)
    assert platform.states(ids) == ["succeeded", "succeeded"]
    assert calls == [2, 2]
    assert platform.job(ids[0]).attempt == 1


def test_lost_database_loses_nothing(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = platform.accept(platform.create(), platform.create())
    applier = platform.applier()
    run = applier._run

    def run_and_lose(connection: Connection, jobs: Any) -> Any:
        outcomes = run(connection, jobs)
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        platform.rows("SELECT pg_terminate_backend(:pid, 5000)", pid=pid)
        return outcomes

    monkeypatch.setattr(applier, "_run", run_and_lose)
    with pytest.raises(DatabaseUnavailable):
        applier.apply(ids)
    assert platform.states(ids) == ["queued", "queued"]
    assert platform.rows("SELECT count(*) FROM deliveries")[0][0] == 0
    platform.applier().apply(ids)
    assert platform.states(ids) == ["succeeded", "succeeded"]
    assert platform.job(ids[0]).attempt == 1


def test_worker_that_does_not_know_the_resource_fails_no_job_of_it(platform: Platform) -> None:
    known, unknown = platform.create(), platform.ticket(str(new_id()))
    ids = platform.accept(known, unknown)
    platform.rows("UPDATE jobs SET resource = 'parcels' WHERE id = :id", id=unknown.job_id)
    platform.applier().apply(ids)
    assert platform.states(ids) == ["succeeded", "retrying"]


def test_member_that_only_another_version_knows_waits_for_a_worker_of_that(platform: Platform) -> None:
    newer = platform.submission(Operation.CREATE, data={"name": "x", "novelty": 1})
    ids = platform.accept(newer, platform.create())

    platform.applier(PATIENT).apply(ids)

    assert platform.states(ids) == ["retrying", "succeeded"]
    (failed,) = platform.job(ids[0]).attempts or ()
    assert failed["reason"].startswith("Unfamiliar: the payload has members that this version does not know")


def test_unknown_members_in_what_the_ledger_keeps_as_json_kill_no_reader(platform: Platform) -> None:
    (one,) = platform.accept(platform.create())
    platform.rows(
        """
        UPDATE jobs SET attempts = '[{"generation": 1, "attempt": 1, "at": "2026-01-01T00:00:00+00:00",
                                      "reason": "x", "novelty": {"a": [1]}}]',
                        crash_log = '[{"worker": "w", "at": "2026-01-01T00:00:00+00:00", "novelty": 1}]'
        WHERE id = :id
        """,
        id=one,
    )
    with platform.database.snapshot() as connection:
        facts = explanation.gather(connection, platform.job(one))
        assert explanation.summary(platform.job(one), facts, 1)

    platform.applier().apply([one])

    job = platform.job(one)
    assert job.state == "succeeded"
    assert b'"novelty":{"a":[1]}' in to_json(job.document())
    with platform.database.snapshot() as connection:
        (first, _) = JobHistory().since(connection, {one: 0})[one]
    assert first.state == "queued"


# ---- who may -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    ["UPDATE users SET role = 'guest' WHERE id = :id", "UPDATE users SET is_disabled = true WHERE id = :id"],
)
def test_user_who_lost_the_right_since_acceptance_fails_with_403(platform: Platform, change: str) -> None:
    eve = platform.add_user(f"eve-{new_id()}", Role.USER)
    ids = platform.accept(platform.create(by=eve), platform.create())
    platform.rows(change, id=eve.id)
    platform.applier().apply(ids)
    assert platform.states(ids) == ["failed", "succeeded"]
    error = platform.job(ids[0]).error
    assert error is not None
    assert error["status"] == 403
    assert platform.instance(platform.job(ids[0]).resource_id) is None


# ---- suspects ------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for the death of the process: nothing of ours catches it."""


def killing(platform: Platform, monkeypatch: pytest.MonkeyPatch, culprit: UUID) -> Any:
    """An applier that dies whenever it runs ``culprit``."""
    applier = platform.applier()
    run = applier._run

    def die(connection: Connection, jobs: Any) -> Any:
        if culprit in [job.id for job in jobs]:
            raise Killed
        return run(connection, jobs)

    monkeypatch.setattr(applier, "_run", die)
    return applier


def test_job_that_kills_its_worker_ends_dead_and_the_innocent_pass_at_the_first_try(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = platform.accept(*(platform.create() for _ in range(4)))
    culprit = ids[1]
    applier = killing(platform, monkeypatch, culprit)
    with pytest.raises(Killed):
        applier.apply(ids)
    for crash in range(1, applier_module.MAX_CRASHES + 1):
        with pytest.raises(Killed):
            applier.apply(ids, are_suspect=True)
        assert platform.rows("SELECT crashes FROM jobs WHERE id = :id", id=culprit)[0][0] == crash
    applier.apply(ids, are_suspect=True)
    assert platform.states(ids) == ["succeeded", "dead", "succeeded", "succeeded"]
    assert [platform.job(one).attempt for one in ids] == [1, 1, 1, 1]
    assert "died" in platform.job(culprit).error["message"]  # type: ignore[index]


def test_attempt_that_another_worker_records_meanwhile_is_counted(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Announced twice, it is at two workers; both together get it tried no more often than one."""
    (job,) = platform.accept(platform.create())
    applier = killing(platform, monkeypatch, job)
    look = applier._head_of_lane
    others = iter(range(applier_module.MAX_CRASHES))

    def look_and_be_overtaken(job_id: UUID) -> Any:
        head = look(job_id)
        if next(others, None) is not None:
            with platform.database.transaction() as connection:
                platform.ledger.record_crash_attempt(connection, job_id, "another:1")
        return head

    monkeypatch.setattr(applier, "_head_of_lane", look_and_be_overtaken)
    applier.apply([job], are_suspect=True)
    assert platform.job(job).state == "dead"
    assert len((platform.job(job).error or {})["evidence"]) == applier_module.MAX_CRASHES


def test_job_announced_again_and_again_is_tried_alone(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = platform.accept(platform.create(), platform.create())
    platform.rows(
        "UPDATE jobs SET announcements = :n WHERE id = :id", n=applier_module.SUSPECT_AFTER, id=ids[0]
    )
    with pytest.raises(Killed):
        killing(platform, monkeypatch, ids[0]).apply(ids)
    assert platform.states(ids) == ["queued", "succeeded"]
    assert platform.rows("SELECT crashes FROM jobs WHERE id = :id", id=ids[0])[0][0] == 1


def test_suspects_lane_is_applied_in_order(platform: Platform) -> None:
    creation = platform.create()
    ids = platform.accept(creation)
    ids += platform.accept(*appended(platform, creation.resource_id, 1, 2, 3))
    platform.applier().apply(ids[::-1], are_suspect=True)
    assert [platform.job(one).version for one in ids] == [1, 2, 3, 4]


def test_suspect_that_fails_without_killing_is_not_counted_as_a_killer(platform: Platform) -> None:
    (job,) = platform.accept(platform.ticket(str(new_id()), note=BROKEN))
    platform.applier().apply([job], are_suspect=True)
    assert platform.job(job).state == "retrying"
    assert platform.rows("SELECT crashes FROM jobs WHERE id = :id", id=job)[0][0] == 0


def test_expired_job_ends_expired_when_its_turn_comes(platform: Platform) -> None:
    creation = platform.create()
    ids = platform.accept(creation)
    ids += platform.accept(platform.patch(creation.resource_id, name="too late"))
    platform.rows("UPDATE jobs SET expires_at = now() WHERE id = :id", id=ids[1])
    platform.applier().apply(ids)
    assert platform.states(ids) == ["succeeded", "expired"]
    assert platform.instance(creation.resource_id)["name"] == "thing"  # type: ignore[index]


def test_witness_is_heard_of_a_suspect_that_came_along_with_a_message_of_others(platform: Platform) -> None:
    suspect, named = platform.accept(platform.create(), platform.create())
    with platform.database.transaction() as connection:
        for worker in (worker_name(4711), worker_name(4712)):
            platform.ledger.record_crash_attempt(connection, suspect, worker)

    runtime = Runtime(platform.settings, make_app(platform.settings))
    runtime.witness([str(named)], 4711, "SIGKILL")
    runtime.close()

    [(log,)] = platform.rows("SELECT crash_log FROM jobs WHERE id = :id", id=suspect)
    assert [entry["signal"] for entry in log] == ["SIGKILL", None]


def test_verdict_waits_for_celery_to_count_its_children(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks after them so often, and may see only then that one has died."""
    (suspect,) = platform.accept(platform.create())
    with platform.database.transaction() as connection:
        for pid in range(applier_module.MAX_CRASHES):
            platform.ledger.record_crash_attempt(connection, suspect, worker_name(pid))
    (interval,) = AsynPool.timers.fget(SimpleNamespace(maintain_pool=None)).values()
    slept = 0.0

    def sleep(seconds: float) -> None:
        nonlocal slept
        slept += seconds
        if slept >= interval:
            with platform.database.transaction() as connection:
                platform.ledger.witness_crash(
                    connection, worker_name(applier_module.MAX_CRASHES - 1), "SIGKILL"
                )

    applier = platform.applier()
    monkeypatch.setattr(applier, "_sleep", sleep)
    applier.apply([suspect], are_suspect=True)

    evidence = (platform.job(suspect).error or {})["evidence"]
    assert evidence[-1]["signal"] == "SIGKILL"


def test_culprit_that_a_batch_was_filled_with_stands_trial(platform: Platform) -> None:
    """It waits for its own announcement, and would spoil every batch until that comes."""
    platform.end_everything()
    (broken,) = platform.accept(platform.ticket("B-1", note=BROKEN))
    good = platform.accept(*(platform.create() for _ in range(6)))

    platform.applier().apply(good[:1], fill_with=Priority.NORMAL)

    assert platform.events(broken)[:2] == ["queued", "retrying"]
    assert platform.states(good) == ["succeeded"] * 6
