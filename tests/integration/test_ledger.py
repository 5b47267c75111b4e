"""Intake and ledger against a real PostgreSQL: accept, keys, lost commits, cancel, expire, wake, redrive."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from threading import Barrier, Thread
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, event, text

from models.errors import (
    Conflict,
    Contention,
    DatabaseUnavailable,
    Forbidden,
    Invalid,
    NotFound,
    PreconditionFailed,
    Refusal,
    Unprocessable,
)
from models.ids import new_id
from models.intake import Answer, Receipt
from models.job import Operation, Priority, Submission, to_json
from models.job_query import JobQuery
from models.ledger import REANNOUNCE_AFTER, RESCUE_AFTER, Outcome
from tests.kit.platform import Platform
from tests.kit.tickets import BROKEN
from tests.kit.waiting import wait_until

AN_HOUR = timedelta(hours=1)


def keyed(platform: Platform, key: str = "k", fingerprint: bytes = b"same", **more: Any) -> Submission:
    return platform.create(idempotency_key=key, fingerprint=fingerprint, **more)


def receipt(answer: Answer) -> Receipt:
    assert isinstance(answer, Receipt), answer
    return answer


def in_one_transaction(platform: Platform, work: Callable[[Connection], Any]) -> Any:
    with platform.database.transaction() as connection:
        return work(connection)


@pytest.fixture(autouse=True)
def forget_keys(platform: Platform) -> None:
    platform.rows("DELETE FROM idempotency_keys")


# ---- accept --------------------------------------------------------------------------


def test_accepted_job_is_told_as_the_ledger_holds_it(platform: Platform) -> None:
    elsewhere = datetime.now(timezone(timedelta(hours=2))) + AN_HOUR
    submission = platform.create(priority=Priority.HIGH, run_at=elsewhere, expires_at=elsewhere)
    told = receipt(platform.intake.accept([submission])[0]).job
    assert told == platform.job(submission.job_id)
    assert to_json(told.document()) == to_json(platform.job(submission.job_id).document())
    assert told.state == "scheduled"


def test_safety_net_is_set_with_the_acceptance(platform: Platform) -> None:
    (job,) = platform.accept(platform.create())
    ((wait,),) = platform.rows("SELECT announce_at - created_at FROM jobs WHERE id = :id", id=job)
    assert wait == RESCUE_AFTER


def test_batch_keeps_its_order_in_position_and_answers(platform: Platform) -> None:
    batch = [platform.create() for _ in range(20)]
    answers = platform.intake.accept(batch)
    assert [receipt(one).job.id for one in answers] == [one.job_id for one in batch]
    by_position = platform.rows("SELECT id FROM jobs ORDER BY position")
    assert [row[0] for row in by_position] == [one.job_id for one in batch]


def test_bad_row_does_not_take_its_neighbours(platform: Platform) -> None:
    batch = [platform.create() for _ in range(9)]
    batch[4] = platform.create(correlation_id="nul \x00 inside")
    answers = platform.intake.accept(batch)
    assert isinstance(answers.pop(4), Invalid)
    assert all(receipt(one).job.state == "queued" for one in answers)
    assert platform.rows("SELECT count(*) FROM jobs")[0][0] == 8


def test_document_is_kept_byte_for_byte(platform: Platform) -> None:
    body = '{ "name" : "Zoë \\u2713", "metadata" : {"b":1.50, "a":1e2} }'.encode()
    (job,) = platform.accept(platform.submission(Operation.CREATE, payload=body))
    assert platform.rows("SELECT payload::text FROM jobs WHERE id = :id", id=job) == [(body.decode(),)]


# ---- idempotency keys ----------------------------------------------------------------


def test_same_key_same_request_is_the_same_job(platform: Platform) -> None:
    first, second = (receipt(platform.intake.accept([keyed(platform)])[0]) for _ in range(2))
    assert (first.is_replay, second.is_replay) == (False, True)
    assert second.job == first.job
    assert platform.rows("SELECT count(*) FROM jobs")[0][0] == 1


def test_replay_tells_how_the_job_stands_now(platform: Platform) -> None:
    platform.made(keyed(platform))
    assert receipt(platform.intake.accept([keyed(platform)])[0]).job.state == "succeeded"


def test_same_key_other_request_is_422(platform: Platform) -> None:
    platform.accept(keyed(platform))
    (answer,) = platform.intake.accept([keyed(platform, fingerprint=b"other")])
    assert isinstance(answer, Unprocessable)


def test_keys_are_scoped_to_principal_and_door(platform: Platform) -> None:
    batch = [keyed(platform), keyed(platform, by=platform.bob), keyed(platform, door="amqp")]
    assert [receipt(one).is_replay for one in platform.intake.accept(batch)] == [False] * 3


def test_twins_in_one_batch_are_one_job(platform: Platform) -> None:
    batch = [keyed(platform), keyed(platform), keyed(platform, fingerprint=b"other"), platform.create()]
    answers = platform.intake.accept(batch)
    assert receipt(answers[1]).is_replay
    assert receipt(answers[1]).job.id == receipt(answers[0]).job.id == batch[0].job_id
    assert isinstance(answers[2], Unprocessable)
    assert not receipt(answers[3]).is_replay


def test_request_is_not_answered_with_what_another_one_of_its_key_is_refused_for(platform: Platform) -> None:
    (job,) = platform.accept(keyed(platform))
    other, same = keyed(platform, fingerprint=b"other"), keyed(platform)
    answers = platform.intake.accept([other, same])
    assert isinstance(answers[0], Unprocessable)
    assert (receipt(answers[1]).job.id, receipt(answers[1]).is_replay) == (job, True)


def test_request_takes_the_key_that_a_refused_one_of_its_batch_left(platform: Platform) -> None:
    refused = platform.submission(
        Operation.DELETE, new_id(), idempotency_key="k", fingerprint=b"nothing is there"
    )
    first, second, twin = keyed(platform), keyed(platform, fingerprint=b"other"), keyed(platform)
    answers = platform.intake.accept([refused, first, second, twin])
    assert [type(one) for one in answers] == [NotFound, Receipt, Unprocessable, Receipt]
    assert receipt(answers[3]).job.id == first.job_id


def test_refused_request_does_not_use_up_its_key(platform: Platform) -> None:
    entity = new_id()
    again = [
        platform.submission(Operation.DELETE, entity, idempotency_key="k", fingerprint=b"same")
        for _ in range(2)
    ]
    assert isinstance(platform.intake.accept(again[:1])[0], NotFound)
    platform.made(platform.create(resource_id=entity))
    assert not receipt(platform.intake.accept(again[1:])[0]).is_replay


def test_twenty_threads_racing_one_key_get_one_job(platform: Platform) -> None:
    start = Barrier(20)

    def race(_: int) -> Receipt:
        batch = [platform.create(), keyed(platform), keyed(platform, key="other")]
        start.wait()
        return receipt(platform.intake.accept(batch)[1])

    with ThreadPoolExecutor(20) as threads:
        receipts = list(threads.map(race, range(20)))
    assert len({one.job.id for one in receipts}) == 1
    assert sum(not one.is_replay for one in receipts) == 1
    assert platform.rows("SELECT count(*) FROM jobs")[0][0] == 22


def test_batches_that_share_keys_in_opposite_order_do_not_deadlock(platform: Platform) -> None:
    keys = [f"k{n}" for n in range(50)]
    start = Barrier(8)

    def race(n: int) -> list[Answer]:
        batch = [keyed(platform, key=key) for key in (keys if n % 2 else keys[::-1])]
        start.wait()
        return platform.intake.accept(batch)

    with ThreadPoolExecutor(8) as threads:
        answers = [answer for batch in threads.map(race, range(8)) for answer in batch]
    assert len({receipt(one).job.id for one in answers}) == 50


def test_key_whose_job_was_accepted_and_applied_meanwhile_is_a_replay(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    entity = platform.made(platform.create())[0].resource_id
    mine, twin = (
        platform.submission(Operation.DELETE, entity, idempotency_key="k", fingerprint=b"same")
        for _ in range(2)
    )
    refusals = platform.intake._refusals

    def overtaken(connection: Connection, batch: Any) -> Any:
        monkeypatch.setattr(platform.intake, "_refusals", refusals)
        platform.made(twin)
        return refusals(connection, batch)

    monkeypatch.setattr(platform.intake, "_refusals", overtaken)
    answer = receipt(platform.intake.accept([mine])[0])
    assert (answer.job.id, answer.is_replay) == (twin.job_id, True)


# ---- refused at once -----------------------------------------------------------------


def test_unknown_and_foreign_instances_are_refused_alike(platform: Platform) -> None:
    entity = platform.made(platform.create())[0].resource_id
    answers = platform.intake.accept(
        [
            platform.patch(new_id(), name="x"),
            platform.submission(Operation.PATCH, entity, {"name": "x"}, by=platform.bob),
            platform.submission(Operation.PATCH, entity, {"name": "x"}, by=platform.guest),
            platform.submission(Operation.PATCH, entity, {"name": "x"}, by=platform.admin),
        ]
    )
    assert [type(one) for one in answers] == [NotFound, NotFound, Forbidden, Receipt]


def test_instance_whose_creation_waits_can_be_aimed_at(platform: Platform) -> None:
    creation = platform.create()
    platform.accept(creation)
    platform.accept(platform.patch(creation.resource_id, name="follows"))


def test_only_what_is_below_the_current_version_is_refused_at_once(platform: Platform) -> None:
    entity = platform.made(platform.create())[0].resource_id
    platform.made(platform.patch(entity, name="second"))
    answers = platform.intake.accept(
        [platform.submission(Operation.PATCH, entity, {"name": "x"}, if_match=n) for n in (1, 2, 3)]
    )
    assert isinstance(answers[0], PreconditionFailed)
    assert answers[0].current_version == 2
    assert [type(one) for one in answers[1:]] == [Receipt, Receipt]


def test_callback_endpoint_must_be_ones_own_and_enabled(platform: Platform) -> None:
    def register(owner: UUID) -> UUID:
        return UUID(
            str(
                in_one_transaction(
                    platform,
                    lambda connection: platform.container.endpoints.register(
                        connection, owner_id=owner, url="https://a", description=None, events=(), secret="s"
                    ),
                ).id
            )
        )

    mine, foreign, disabled = register(platform.ada.id), register(platform.bob.id), register(platform.ada.id)
    platform.rows("UPDATE callback_endpoints SET disabled = true WHERE id = :id", id=disabled)
    answers = platform.intake.accept(
        [platform.create(callback_endpoint_id=one) for one in (mine, foreign, disabled, new_id())]
    )
    assert [type(one) for one in answers] == [Receipt, Invalid, Invalid, Invalid]


# ---- a lost connection ---------------------------------------------------------------


@contextmanager
def connection_lost_at_commit(platform: Platform, *, is_committed: bool) -> Iterator[None]:
    """The server ends the next session that commits a job: before COMMIT, or after it but unheard."""
    engine = platform.database.engine
    lost: list[int] = []

    def lose(connection: Connection) -> None:
        raw: Any = connection.connection.driver_connection
        has_jobs = connection.exec_driver_sql(
            "SELECT EXISTS (SELECT FROM jobs WHERE xmin = pg_current_xact_id_if_assigned()::xid)"
        ).scalar_one()
        if lost or not has_jobs:
            return
        lost.append(raw.info.backend_pid)
        if is_committed:
            raw.commit()
        platform.rows("SELECT pg_terminate_backend(:pid, 5000)", pid=lost[0])

    event.listen(engine, "commit", lose)
    try:
        yield
    finally:
        event.remove(engine, "commit", lose)
    assert lost, "no commit was disturbed"


def test_commit_that_succeeded_unheard_is_found_by_looking_up(platform: Platform) -> None:
    batch = [platform.create(), keyed(platform), platform.patch(new_id(), name="nothing there")]
    with connection_lost_at_commit(platform, is_committed=True):
        answers = platform.intake.accept(batch)
    assert [type(one) for one in answers] == [Receipt, Receipt, NotFound]
    assert not receipt(answers[1]).is_replay
    assert platform.rows("SELECT count(*) FROM jobs")[0][0] == 2


def test_commit_that_certainly_never_happened_is_made_once_more(platform: Platform) -> None:
    batch = [platform.create(), keyed(platform)]
    with connection_lost_at_commit(platform, is_committed=False):
        answers = platform.intake.accept(batch)
    assert [receipt(one).job.id for one in answers] == [one.job_id for one in batch]
    assert not any(receipt(one).is_replay for one in answers)
    assert platform.rows("SELECT count(*) FROM jobs")[0][0] == 2


@contextmanager
def connections_lost_before_commit(platform: Platform, times: int) -> Iterator[list[int]]:
    """The server ends the session of the next ``times`` acceptances, in the midst of their transaction."""
    accept, lost = platform.ledger.accept, list[int]()

    def lose(connection: Connection, batch: Any) -> Any:
        added = accept(connection, batch)
        if len(lost) < times:
            raw: Any = connection.connection.driver_connection
            lost.append(raw.info.backend_pid)
            platform.rows("SELECT pg_terminate_backend(:pid, 5000)", pid=lost[-1])
            connection.execute(text("SELECT 1"))
        return added

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(platform.ledger, "accept", lose)
        yield lost


def test_connection_lost_before_commit_is_noticed_by_nobody(platform: Platform) -> None:
    with connections_lost_before_commit(platform, times=1) as lost:
        answers = platform.intake.accept([platform.create(), keyed(platform)])
    assert len(lost) == 1
    assert [receipt(one).is_replay for one in answers] == [False, False]
    assert platform.rows("SELECT count(*) FROM jobs")[0][0] == 2


def test_connection_is_retried_once_and_not_for_ever(platform: Platform) -> None:
    with connections_lost_before_commit(platform, times=5) as lost, pytest.raises(DatabaseUnavailable):
        platform.intake.accept([platform.create()])
    assert len(lost) == 2
    assert platform.rows("SELECT count(*) FROM jobs")[0][0] == 0


def test_transaction_that_a_crash_forgot_is_not_under_way(platform: Platform) -> None:
    with platform.database.snapshot() as connection:
        assert not platform.ledger.is_under_way(connection, 2**40)


def test_commit_still_under_way_when_the_connection_was_lost_is_waited_for(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The backend that is still committing is played by a second transaction with the same rows.
    submission = platform.create()
    settle = platform.intake._settle
    with ThreadPoolExecutor(1) as thread, platform.database.engine.connect() as backend:

        def settle_while_committing(*arguments: Any) -> Any:
            with connection_is_in_transaction(backend, submission, platform) as xid:
                future = thread.submit(settle, arguments[0], xid, *arguments[2:])
                with pytest.raises(TimeoutError):
                    future.result(timeout=0.5)
            return future.result(timeout=10)

        monkeypatch.setattr(platform.intake, "_settle", settle_while_committing)
        with connection_lost_at_commit(platform, is_committed=False):
            (answer,) = platform.intake.accept([submission])
    assert receipt(answer).job.id == submission.job_id


@contextmanager
def connection_is_in_transaction(
    backend: Connection, submission: Submission, platform: Platform
) -> Iterator[int]:
    with backend.begin():
        platform.ledger.accept(backend, [submission])
        yield int(backend.execute(text("SELECT pg_current_xact_id()::text")).scalar_one())


# ---- cancel --------------------------------------------------------------------------


@pytest.mark.parametrize("run_at", [None, datetime.now(UTC) + AN_HOUR])
def test_cancelled_job_is_never_applied(platform: Platform, run_at: datetime | None) -> None:
    submission = platform.create(run_at=run_at)
    platform.accept(submission)
    in_one_transaction(platform, lambda connection: platform.ledger.cancel(connection, submission.job_id))
    platform.applier().apply([submission.job_id])
    assert platform.job(submission.job_id).state == "cancelled"
    assert platform.instance(submission.resource_id) is None


def test_cancel_of_a_final_job_says_in_which_state_it_is(platform: Platform) -> None:
    job = platform.made(platform.create())[0]
    with pytest.raises(Conflict, match="succeeded already"):
        in_one_transaction(platform, lambda connection: platform.ledger.cancel(connection, job.id))


def test_cancel_of_an_unknown_job_is_404(platform: Platform) -> None:
    with pytest.raises(NotFound):
        in_one_transaction(platform, lambda connection: platform.ledger.cancel(connection, new_id()))


def is_waiting_for_a_lock(platform: Platform) -> bool:
    waiting = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    return bool(platform.rows(waiting)[0][0])


def test_cancel_waits_for_whoever_applies_the_job_and_tells_the_truth(platform: Platform) -> None:
    (job,) = platform.accept(platform.create())
    told: list[str] = []

    def cancel() -> None:
        try:
            in_one_transaction(platform, lambda connection: platform.ledger.cancel(connection, job))
        except Conflict as refusal:
            told.append(refusal.message)

    with platform.database.transaction() as connection:
        lanes, _ = platform.ledger.lock_lanes(connection, [job])
        platform.ledger.open_jobs(connection, lanes, 10)
        platform.ledger.finish(connection, [Outcome(job_id=job, state="succeeded", attempt=1)])  # type: ignore[arg-type]
        thread = Thread(target=cancel)
        thread.start()
        wait_until(lambda: is_waiting_for_a_lock(platform))
    thread.join()
    assert told == ["The job is succeeded already"]
    assert platform.events(job) == ["queued", "succeeded"]


def test_cancel_against_appliers_ends_every_job_exactly_once(platform: Platform) -> None:
    ids = platform.accept(*(platform.create() for _ in range(60)))
    start = Barrier(3)

    def cancel() -> int:
        start.wait()
        return sum(_cancelled(platform, one) for one in reversed(ids))

    def apply() -> None:
        start.wait()
        for n in range(0, 60, 6):
            platform.applier().apply(ids[n : n + 6])

    with ThreadPoolExecutor(3) as threads:
        cancelling, *applying = threads.submit(cancel), threads.submit(apply), threads.submit(apply)
        for future in applying:
            future.result()
        cancelled = cancelling.result()
    platform.applier().apply(ids)
    states = platform.states(ids)
    assert states.count("cancelled") == cancelled
    assert states.count("succeeded") == 60 - cancelled
    assert all(len(platform.events(one)) == 2 for one in ids)


def _cancelled(platform: Platform, job_id: UUID) -> bool:
    try:
        in_one_transaction(platform, lambda connection: platform.ledger.cancel(connection, job_id))
    except Conflict:
        return False
    return True


# ---- finish --------------------------------------------------------------------------


def test_job_that_is_final_cannot_be_finished_again(platform: Platform) -> None:
    job = platform.made(platform.create())[0].id
    with pytest.raises(Contention):
        in_one_transaction(
            platform,
            lambda connection: platform.ledger.finish(
                connection,
                [Outcome(job_id=job, state="failed", attempt=2)],  # type: ignore[arg-type]
            ),
        )
    assert platform.job(job).state == "succeeded"


def test_outcome_and_deliveries_are_written_together(platform: Platform) -> None:
    job = platform.made(platform.create(reply_to="answers"))[0]
    kinds = platform.rows("SELECT kind, sequences FROM deliveries ORDER BY kind")
    assert [tuple(row) for row in kinds] == [("events", [job.sequence]), ("reply", [job.sequence])]


def test_subscribers_get_only_what_they_asked_for_and_only_their_own(platform: Platform) -> None:
    def subscribe(owner: UUID, *events: str) -> UUID:
        made: UUID = in_one_transaction(
            platform,
            lambda connection: platform.container.endpoints.register(
                connection, owner_id=owner, url="https://a", description=None, events=events, secret="s"
            ),
        ).id
        return made

    succeeded = subscribe(platform.ada.id, "job.succeeded")
    subscribe(platform.ada.id, "job.failed")
    subscribe(platform.bob.id, "job.succeeded")
    named = subscribe(platform.ada.id, "job.succeeded")
    platform.made(platform.create(callback_endpoint_id=named))
    told = platform.rows("SELECT endpoint_id FROM deliveries WHERE kind = 'callback'")
    assert sorted(row[0] for row in told) == sorted([succeeded, named])
    platform.rows("DELETE FROM callback_endpoints")


# ---- sweep ---------------------------------------------------------------------------


def test_overdue_jobs_expire_wherever_they_wait(platform: Platform) -> None:
    later = datetime.now(UTC) + AN_HOUR
    ticket = platform.ticket(str(new_id()), note=BROKEN)
    ids = platform.accept(platform.create(), platform.create(run_at=later), ticket, platform.create())
    platform.applier(retry_policy=platform.container.retry_policy).apply([ticket.job_id])
    platform.rows("UPDATE jobs SET expires_at = now() WHERE id <> :id", id=ids[3])
    in_one_transaction(platform, lambda connection: platform.ledger.expire(connection, 10))
    assert platform.states(ids) == ["expired", "expired", "expired", "queued"]
    assert platform.events(ids[1]) == ["scheduled", "expired"]


def test_scheduled_job_joins_the_end_of_its_lane_when_it_is_due(platform: Platform) -> None:
    creation = platform.create()
    scheduled = platform.patch(creation.resource_id, name="scheduled")
    object.__setattr__(scheduled, "run_at", datetime.now(UTC) + AN_HOUR)
    ids = platform.accept(creation)
    ids += platform.accept(scheduled)
    ids += platform.accept(platform.patch(creation.resource_id, name="accepted later"))
    platform.applier().apply(ids)
    assert platform.states(ids) == ["succeeded", "scheduled", "succeeded"]

    def wake(connection: Connection) -> int:
        return platform.ledger.wake_scheduled(connection, 10)

    assert in_one_transaction(platform, wake) == 0
    platform.rows("UPDATE jobs SET announce_at = now() WHERE id = :id", id=ids[1])
    assert in_one_transaction(platform, wake) == 1
    platform.applier().apply(ids)
    assert platform.events(ids[1]) == ["scheduled", "queued", "succeeded"]
    assert [platform.job(one).version for one in ids] == [1, 3, 2]


def test_dead_job_is_redriven_at_the_end_of_its_lane(platform: Platform) -> None:
    ticket = platform.made(platform.ticket(str(new_id())))[0].resource_id
    ids = platform.accept(platform.patch_ticket(ticket, note=BROKEN), platform.patch_ticket(ticket, note="x"))
    for _ in range(3):
        platform.applier().apply(ids)
    assert platform.states(ids) == ["dead", "succeeded"]
    ids += platform.accept(platform.patch_ticket(ticket, note="y"))
    platform.rows('UPDATE jobs SET payload = \'{"note": "mended"}\' WHERE id = :id', id=ids[0])
    in_one_transaction(platform, lambda connection: platform.ledger.redrive(connection, {ids[0]: None}))
    job = platform.job(ids[0])
    assert (job.state, job.attempt, job.error, job.finished_at) == ("queued", 0, None, None)
    platform.applier().apply(ids)
    assert [platform.job(one).version for one in ids] == [4, 2, 3]
    assert platform.events(ids[0])[-3:] == ["dead", "queued", "succeeded"]


@pytest.mark.parametrize("state", ["queued", "succeeded"])
def test_only_a_dead_job_can_be_redriven(platform: Platform, state: str) -> None:
    (job,) = platform.accept(platform.create())
    if state == "succeeded":
        platform.applier().apply([job])
    with pytest.raises(Conflict):
        in_one_transaction(platform, lambda connection: platform.ledger.redrive(connection, {job: None}))
    assert platform.job(job).state == state


def due(platform: Platform, limit: int = 100, priority: Priority = Priority.NORMAL) -> list[UUID]:
    found: list[UUID] = in_one_transaction(
        platform, lambda connection: platform.ledger.due(connection, priority, limit)
    )
    return found


def test_due_claims_oldest_first_up_to_the_limit_and_moves_the_next_announcement_on(
    platform: Platform,
) -> None:
    ids = platform.accept(*(platform.create() for _ in range(5)))
    assert due(platform) == []
    for age, one in enumerate(ids):
        platform.rows(
            "UPDATE jobs SET announce_at = now() - make_interval(mins => :age) WHERE id = :id",
            age=5 - age,
            id=one,
        )
    assert due(platform, 3) == ids[:3]
    assert due(platform, 3) == ids[3:]
    assert due(platform) == []
    moved = platform.rows("SELECT announce_at - now() AS wait, announcements FROM jobs")
    assert {(row.wait <= REANNOUNCE_AFTER, row.announcements) for row in moved} == {(True, 1)}


def test_due_keeps_priorities_apart(platform: Platform) -> None:
    ids = platform.accept(*(platform.create(priority=one) for one in Priority))
    platform.rows("UPDATE jobs SET announce_at = now()")
    assert [due(platform, priority=one) for one in Priority] == [[one] for one in ids]


def test_due_skips_jobs_that_are_being_applied(platform: Platform) -> None:
    ids = platform.accept(platform.create(), platform.create())
    platform.rows("UPDATE jobs SET announce_at = now()")
    with platform.database.transaction() as connection:
        lanes, _ = platform.ledger.lock_lanes(connection, ids[:1])
        platform.ledger.open_jobs(connection, lanes, 10)
        assert due(platform) == ids[1:]


def test_due_names_neither_scheduled_nor_final_jobs(platform: Platform) -> None:
    platform.accept(platform.create(run_at=datetime.now(UTC) + AN_HOUR))
    platform.made(platform.create())
    platform.rows("UPDATE jobs SET announce_at = now() WHERE state = 'scheduled'")
    assert due(platform) == []


# ---- read ----------------------------------------------------------------------------


def test_pages_of_jobs_are_newest_first_and_only_what_was_asked_for(platform: Platform) -> None:
    ids = platform.accept(*(platform.create() for _ in range(5)), platform.create(by=platform.bob))
    mine = JobQuery(principal_id=platform.ada.id, resource="entities", state="queued", limit=3)

    def page(query: JobQuery) -> list[UUID]:
        return [job.id for job in in_one_transaction(platform, lambda c: platform.ledger.page(c, query))]

    newest = sorted(ids[:5], reverse=True)
    assert page(mine) == newest[:3]
    assert page(JobQuery(principal_id=platform.ada.id, before=newest[2])) == newest[3:]
    assert page(JobQuery()) == sorted(ids, reverse=True)


def test_backlog_counts_what_is_not_final(platform: Platform) -> None:
    platform.made(platform.create())
    platform.accept(platform.create(), platform.create(priority=Priority.BULK))
    backlog = in_one_transaction(platform, platform.ledger.backlog)
    assert sorted((state, priority, count) for state, priority, count, _ in backlog) == [
        ("queued", "bulk", 1),
        ("queued", "normal", 1),
    ]


def test_every_refusal_is_an_answer_and_not_an_exception(platform: Platform) -> None:
    answers = platform.intake.accept([platform.submission(Operation.DELETE, new_id()) for _ in range(3)])
    assert all(isinstance(one, Refusal) for one in answers)
