"""Retention on a real PostgreSQL: what goes, what never goes, in small steps, one at a time."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import event, text

from models import retention as rules
from models.audit import Actor, AuditEntry, AuditOutcome, AuditTrail
from models.database import Database
from models.dead_letters.messages import DeadMessage, DeadMessages
from models.deliveries.delivery_log import DeliveryLog
from models.errors import Contention, Refusal
from models.ids import earliest_id, new_id
from models.intake import Receipt
from models.job import JobState, Submission
from models.ledger import Outcome
from models.retention import Retention
from tests.kit.ageing import aged, many_finished, published
from tests.kit.delivering import Endpoint
from tests.kit.platform import Platform

KEPT = timedelta(days=30)
LONG_AGO, LATELY = timedelta(days=31), timedelta(days=29)
PRUNABLE = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED)


@pytest.fixture
def retention(platform: Platform) -> Retention:
    platform.rows("DELETE FROM idempotency_keys")
    platform.rows("DELETE FROM dead_messages")
    platform.rows("DELETE FROM audit")
    return Retention(platform.database, finished=KEPT, audit=timedelta(days=365))


def pruned(retention: Retention) -> dict[str, int]:
    """Prune; how many rows of which tables went."""
    rows: dict[str, int] = {}
    for batch in retention.batches():
        for table, count in batch.rows.items():
            rows[table] = rows.get(table, 0) + count
    return {table: count for table, count in rows.items() if count}


def ended(platform: Platform, state: JobState = JobState.SUCCEEDED, **more: Any) -> UUID:
    """A job that ended just now, with nothing left to be sent."""
    (job_id,) = platform.accept(platform.create(**more))
    outcome = Outcome(job_id=job_id, state=state, attempt=1, result=b"{}", error={"message": "it broke"})
    with platform.database.transaction() as connection:
        platform.ledger.finish(connection, [outcome])
    published(platform, timedelta(0))
    return job_id


def keyed(key: str) -> dict[str, Any]:
    return {"idempotency_key": key, "fingerprint": b"f" * 32}


def exists(platform: Platform, job_id: UUID) -> bool:
    with platform.database.snapshot() as connection:
        return job_id in platform.ledger.find(connection, [job_id])


def rows_of(platform: Platform, job_id: UUID) -> dict[str, int]:
    """What of a job there is, by table."""
    counts = {"jobs": "id", "job_events": "job_id", "deliveries": "job_id", "idempotency_keys": "job_id"}
    return {
        table: platform.rows(f"SELECT count(*) FROM {table} WHERE {key} = :id", id=job_id)[0][0]  # noqa: S608
        for table, key in counts.items()
    }


# ---- what goes ---------------------------------------------------------------------------


@pytest.mark.parametrize("state", PRUNABLE)
def test_job_that_ended_long_ago_goes_with_all_that_hangs_on_it(
    platform: Platform, retention: Retention, state: JobState
) -> None:
    job_id = aged(platform, ended(platform, state, reply_to="answers", **keyed("k")), LONG_AGO)
    platform.rows("UPDATE deliveries SET state = 'delivered', announce_at = NULL")
    assert rows_of(platform, job_id) == {"jobs": 1, "job_events": 2, "deliveries": 1, "idempotency_keys": 1}
    assert pruned(retention) == {"jobs": 1, "job_events": 2, "deliveries": 1, "idempotency_keys": 1}
    assert set(rows_of(platform, job_id).values()) == {0}


def test_discarded_dead_job_goes_in_its_time(platform: Platform, retention: Retention) -> None:
    jobs = [ended(platform, JobState.DEAD) for _ in range(3)]
    with platform.database.transaction() as connection:
        platform.ledger.discard(connection, jobs[:2])
    published(platform, timedelta(0))
    old, lately, resting = (aged(platform, one, LONG_AGO) for one in jobs)
    platform.rows("UPDATE jobs SET discarded_at = now() - :ago WHERE id = :id", ago=LATELY, id=lately)
    pruned(retention)
    assert [exists(platform, one) for one in (old, lately, resting)] == [False, True, True]


def test_events_that_were_published_long_ago_go_and_what_waits_stays(
    platform: Platform, retention: Retention
) -> None:
    for _ in range(2):
        (job_id,) = platform.accept(platform.create())
        with platform.database.transaction() as connection:
            platform.ledger.cancel(connection, job_id)
    published(platform, LONG_AGO)
    platform.rows(
        "UPDATE deliveries SET state = 'pending', announce_at = now()"
        " WHERE id = (SELECT id FROM deliveries LIMIT 1)"
    )
    assert pruned(retention) == {"deliveries": 1}
    assert platform.rows("SELECT state FROM deliveries") == [("pending",)]


def test_event_that_was_published_only_lately_stays(platform: Platform, retention: Retention) -> None:
    ended(platform)
    platform.rows("UPDATE deliveries SET announce_at = now()")
    published(platform, LONG_AGO)
    platform.rows("UPDATE deliveries SET updated_at = now() - :ago", ago=LATELY)
    assert pruned(retention) == {}


def test_dead_messages_and_audit_go_in_their_own_time(platform: Platform, retention: Retention) -> None:
    for age in (LONG_AGO, LATELY):
        keep_message(platform, age)
    entry = AuditEntry(action="redrive", subject="x", outcome=AuditOutcome.DONE)
    with platform.database.transaction() as connection:
        AuditTrail().write(connection, Actor(None, "ada"), [entry, entry])
    platform.rows(
        "UPDATE audit SET id = :old WHERE id = (SELECT id FROM audit LIMIT 1)",
        old=earliest_id(datetime.now(UTC), offset=-timedelta(days=366)),
    )
    assert pruned(retention) == {"dead_messages": 1, "audit": 1}


def keep_message(platform: Platform, age: timedelta) -> None:
    message = DeadMessage(
        digest=new_id().bytes, queue="q", reason="rejected", task=None, are_jobs=False, ids=(), headers={},
        content_type=None, size=1, body=b"x",
    )  # fmt: skip
    with platform.database.transaction() as connection:
        assert DeadMessages().keep(connection, message)
    platform.rows(
        "UPDATE dead_messages SET collected_at = now() - :age WHERE digest = :digest",
        age=age,
        digest=message.digest,
    )


def test_ended_sessions_and_stale_failures_go(platform: Platform, retention: Retention) -> None:
    platform.rows(
        "INSERT INTO login_attempts (digest, last_at, known_until) VALUES"
        " ('old', now() - interval '2 days', NULL), ('new', now(), NULL),"
        " ('known', now() - interval '2 days', now() + interval '1 day')"
    )
    platform.rows(
        "INSERT INTO refresh_families (id, user_id, role, current_digest, expires_at, idle_at)"
        " SELECT gen_random_uuid(), :ada, 'user', '', now() + interval '9 days', now() - age"
        " FROM unnest(ARRAY[interval '2 days', interval '-2 days']) AS age",
        ada=platform.ada.id,
    )
    assert pruned(retention) == {"login_attempts": 1, "refresh_families": 1}


# ---- what never goes ---------------------------------------------------------------------


def _callback_to_be_sent(platform: Platform, job_id: UUID) -> UUID:
    platform.rows(
        "INSERT INTO deliveries (id, kind, job_id, sequences, announce_at, state)"
        " VALUES (waybill_uuid7(), 'callback', :id, '{1}', now() + interval '1 hour', 'retrying')",
        id=job_id,
    )
    return aged(platform, job_id, LONG_AGO)


def _event_to_be_published(platform: Platform, job_id: UUID) -> UUID:
    platform.rows(
        "UPDATE deliveries SET announce_at = now(), state = 'pending'"
        " WHERE kind = 'events' AND sequences[1] = (SELECT sequence FROM jobs WHERE id = :id)",
        id=job_id,
    )
    return aged(platform, job_id, LONG_AGO)


def _accepted_long_ago(platform: Platform, job_id: UUID) -> UUID:
    return aged(platform, job_id, LATELY, accepted=timedelta(days=300))


def _in_state(state: str) -> Callable[[Platform, UUID], UUID]:
    def put(platform: Platform, job_id: UUID) -> UUID:
        platform.rows("UPDATE jobs SET state = :state WHERE id = :id", state=state, id=job_id)
        return aged(platform, job_id, LONG_AGO)

    return put


@pytest.mark.parametrize(
    "reason",
    [
        _in_state("scheduled"),
        _in_state("queued"),
        _in_state("retrying"),
        _in_state("dead"),
        _callback_to_be_sent,
        _event_to_be_published,
        _accepted_long_ago,
    ],
    ids=["scheduled", "queued", "retrying", "dead", "callback", "event", "ended lately"],
)
def test_job_stays_where_there_is_a_reason(
    platform: Platform, retention: Retention, reason: Callable[[Platform, UUID], UUID]
) -> None:
    neighbour = aged(platform, ended(platform), LONG_AGO)
    with_reply = ended(platform, reply_to="answers", **keyed("kept"))
    platform.rows("UPDATE deliveries SET state = 'delivered', announce_at = NULL WHERE kind = 'reply'")
    kept = reason(platform, with_reply)
    before = rows_of(platform, kept)
    assert before["deliveries"] >= 1
    pruned(retention)
    assert rows_of(platform, kept) == before
    assert not exists(platform, neighbour)


def test_job_within_its_retention_stays(platform: Platform, retention: Retention) -> None:
    kept = aged(platform, ended(platform), LATELY)
    assert pruned(retention) == {}
    assert exists(platform, kept)


def test_job_of_a_clock_that_is_ahead_stays_until_its_id_is_past_too(
    platform: Platform, retention: Retention
) -> None:
    ahead = aged(platform, ended(platform), LONG_AGO, accepted=KEPT + timedelta(minutes=4))
    pruned(retention)
    assert exists(platform, ahead)


def test_zero_keeps_for_good(platform: Platform) -> None:
    keep_message(platform, LONG_AGO)
    job_id = aged(platform, ended(platform), timedelta(days=9000))
    for_good = Retention(platform.database, finished=timedelta(0), audit=timedelta(0))
    assert pruned(for_good) == {}
    assert exists(platform, job_id)
    with platform.database.transaction() as connection:
        assert set(for_good.overdue(connection)) == {"login_attempts", "refresh_families"}


# ---- in small steps, beside everybody else -----------------------------------------------


def test_steps_are_small_and_oldest_come_first(platform: Platform) -> None:
    many_finished(platform, 1050)
    retention = Retention(platform.database, finished=KEPT, audit=KEPT, batch=100)
    oldest = platform.rows("SELECT id FROM jobs ORDER BY id LIMIT 100")
    steps = (batch for batch in retention.batches() if batch.rows.get("jobs"))
    first = next(steps)
    assert first.rows == {"jobs": 100, "deliveries": 100, "idempotency_keys": 100, "job_events": 200}
    assert timedelta(days=9) < first.behind < timedelta(days=11)
    assert not [row for row in oldest if exists(platform, row[0])]
    assert [batch.rows["jobs"] for batch in steps] == [100] * 9 + [50]


def test_those_that_prune_at_once_take_turns_and_nothing_twice(platform: Platform) -> None:
    many_finished(platform, 3000)
    counts, troubles = [0, 0, 0], []

    def prune(place: int) -> None:
        mine = Retention(platform.database, finished=KEPT, audit=KEPT, batch=50)
        while platform.rows("SELECT EXISTS (SELECT FROM jobs)")[0][0]:
            try:
                counts[place] += pruned_jobs(mine)
            except Contention:
                continue
            except Exception as trouble:
                troubles.append(trouble)
                return

    def pruned_jobs(mine: Retention) -> int:
        done = 0
        try:
            for batch in mine.batches():
                done += batch.rows.get("jobs", 0)
        except Contention:
            pass
        return done

    threads = [threading.Thread(target=prune, args=(place,)) for place in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (sum(counts), troubles) == (3000, [])


def test_while_another_prunes_nothing_is_done(platform: Platform, retention: Retention) -> None:
    job_id = aged(platform, ended(platform), LONG_AGO)
    with platform.database.transaction() as other:
        other.execute(text("SELECT pg_advisory_xact_lock(:a, :b)"), dict(zip("ab", rules.LOCK, strict=True)))
        with pytest.raises(Contention):
            pruned(retention)
    assert exists(platform, job_id)
    assert pruned(retention)["jobs"] == 1


def test_locked_job_is_passed_over(platform: Platform, retention: Retention) -> None:
    locked, free = (aged(platform, ended(platform), LONG_AGO) for _ in range(2))
    with platform.database.transaction() as other:
        other.execute(text("SELECT FROM jobs WHERE id = :id FOR NO KEY UPDATE"), {"id": locked})
        pruned(retention)
    assert [exists(platform, one) for one in (locked, free)] == [True, False]


def test_callback_that_is_being_sent_again_keeps_its_job(platform: Platform, retention: Retention) -> None:
    endpoint = Endpoint(platform, "https://receiver.example/hook", events=["job.succeeded"])
    job_id = ended(platform)
    platform.rows("UPDATE deliveries SET state = 'delivered', announce_at = NULL WHERE kind = 'callback'")
    job_id = aged(platform, job_id, LONG_AGO)
    ((delivery,),) = platform.rows("SELECT id FROM deliveries WHERE endpoint_id = :id", id=endpoint.id)
    with platform.database.transaction() as other:
        DeliveryLog().resend(other, platform.ada.id, delivery)
        pruned(retention)
    assert pruned(retention) == {}
    assert rows_of(platform, job_id)["deliveries"] == 1
    assert exists(platform, job_id)


def test_job_of_which_one_delivery_is_locked_keeps_the_others_too(
    platform: Platform, retention: Retention
) -> None:
    endpoints = [
        Endpoint(platform, f"https://{name}.example/hook", events=["job.succeeded"])
        for name in ("one", "two")
    ]
    locked, free = ended(platform, **keyed("locked")), ended(platform, **keyed("free"))
    platform.rows("UPDATE deliveries SET state = 'delivered', announce_at = NULL WHERE kind = 'callback'")
    locked, free = (aged(platform, one, LONG_AGO) for one in (locked, free))
    whole = {"jobs": 1, "job_events": 2, "deliveries": 2, "idempotency_keys": 1}
    with platform.database.transaction() as other:
        other.execute(
            text("SELECT FROM deliveries WHERE job_id = :id AND endpoint_id = :endpoint FOR NO KEY UPDATE"),
            {"id": locked, "endpoint": endpoints[0].id},
        )
        assert pruned(retention) == whole
    assert (rows_of(platform, locked), exists(platform, free)) == (whole, False)
    later = Retention(platform.database, finished=KEPT, audit=KEPT)
    assert pruned(later) == whole
    assert set(rows_of(platform, locked).values()) == {0}


def test_callback_that_was_asked_for_again_meanwhile_keeps_its_job(
    platform: Platform, retention: Retention
) -> None:
    Endpoint(platform, "https://receiver.example/hook", events=["job.succeeded"])
    job_id = ended(platform)
    platform.rows("UPDATE deliveries SET state = 'delivered', announce_at = NULL WHERE kind = 'callback'")
    job_id = aged(platform, job_id, LONG_AGO)
    ((delivery,),) = platform.rows("SELECT id FROM deliveries WHERE job_id = :id", id=job_id)

    def resend(_: Any, __: Any, statement: str, *___: Any) -> None:
        if "past AS" in statement:
            with platform.database.transaction() as other:
                DeliveryLog().resend(other, platform.ada.id, delivery)

    database = Database(platform.database.url)
    event.listen(database.engine, "after_cursor_execute", resend)
    pruned(Retention(database, finished=KEPT, audit=KEPT))
    database.close()
    assert exists(platform, job_id)
    assert platform.rows("SELECT state FROM deliveries WHERE id = :id", id=delivery) == [("pending",)]


@pytest.fixture
def halted(platform: Platform) -> Iterator[Callable[[], None]]:
    """Prunes in a thread as far as a step's last statement, and commits when it is called."""
    reached, go = threading.Event(), threading.Event()

    database = Database(platform.database.url)

    def halt(_: Any, __: Any, statement: str, *___: Any) -> None:
        if "DELETE FROM idempotency_keys" in statement:
            reached.set()
            go.wait(20)

    event.listen(database.engine, "after_cursor_execute", halt)
    pruning = threading.Thread(
        target=lambda: pruned(Retention(database, finished=KEPT, audit=KEPT)), daemon=True
    )
    pruning.start()
    assert reached.wait(20)

    def let_go() -> None:
        go.set()
        pruning.join(20)

    yield let_go
    let_go()
    database.close()


class TestBesideAStep:
    """While the rows of a step are deleted and not yet committed."""

    @pytest.fixture
    def old(self, platform: Platform, retention: Retention) -> Submission:
        submission = platform.create(**keyed("again"))
        platform.made(submission)
        platform.rows("UPDATE deliveries SET state = 'delivered', announce_at = NULL")
        aged(platform, submission.job_id, LONG_AGO)
        return submission

    def test_jobs_are_taken_in_and_applied(
        self, platform: Platform, old: Submission, halted: Callable[[], None]
    ) -> None:
        (job,) = platform.made(platform.create(**keyed("another")))
        assert job.state is JobState.SUCCEEDED

    def test_its_key_is_honoured_until_then_and_is_free_afterwards(
        self, platform: Platform, old: Submission, halted: Callable[[], None]
    ) -> None:
        again = platform.create(**keyed("again"))
        (answer,) = platform.intake.accept([again])
        assert isinstance(answer, Receipt)
        assert answer.is_replay
        halted()
        (answer,) = platform.intake.accept([again])
        assert isinstance(answer, Receipt)
        assert (answer.is_replay, answer.job.id) == (False, again.job_id)


# ---- idempotency keys --------------------------------------------------------------------


def test_key_is_kept_as_long_as_its_job(platform: Platform, retention: Retention) -> None:
    job_id = aged(platform, ended(platform, **keyed("k")), LATELY)
    pruned(retention)
    (answer,) = platform.intake.accept([platform.create(**keyed("k"))])
    assert isinstance(answer, Receipt)
    assert (answer.is_replay, answer.job.id) == (True, job_id)


def test_key_whose_job_goes_between_two_looks_makes_a_new_job(
    platform: Platform, retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    aged(platform, ended(platform, **keyed("k")), LONG_AGO)
    find = platform.ledger.find

    def find_too_late(*arguments: Any) -> Any:
        pruned(retention)
        return find(*arguments)

    monkeypatch.setattr(platform.ledger, "find", find_too_late)
    again = platform.create(**keyed("k"))
    (answer,) = platform.intake.accept([again])
    assert isinstance(answer, Receipt)
    assert answer.job.id == again.job_id
    assert platform.rows("SELECT job_id FROM idempotency_keys WHERE key = 'k'") == [(again.job_id,)]


def test_key_whose_job_was_deleted_by_hand_refuses(platform: Platform, retention: Retention) -> None:
    platform.rows("DELETE FROM jobs WHERE id = :id", id=ended(platform, **keyed("k")))
    (answer,) = platform.intake.accept([platform.create(**keyed("k"))])
    assert isinstance(answer, Refusal)
    assert answer.status == 422


# ---- what is passed over -----------------------------------------------------------------


def test_what_was_passed_over_is_looked_at_again_after_an_hour(platform: Platform) -> None:
    moments = [0.0]
    retention = Retention(platform.database, finished=KEPT, audit=KEPT, now=lambda: moments[0])
    first = aged(platform, ended(platform), LONG_AGO)
    last = aged(platform, ended(platform, JobState.DEAD), LONG_AGO)
    platform.rows("UPDATE jobs SET state = 'dead' WHERE id = :id", id=first)
    assert pruned(retention) == {}
    platform.rows("UPDATE jobs SET state = 'failed'")
    assert pruned(retention) == {}
    moments[0] = 3601.0
    assert pruned(retention)["jobs"] == 2
    assert not exists(platform, last)


def test_run_that_was_left_goes_on_where_it_was(platform: Platform) -> None:
    many_finished(platform, 300)
    retention = Retention(platform.database, finished=KEPT, audit=KEPT, batch=100)
    next(batch for batch in retention.batches() if batch.rows.get("jobs"))
    assert pruned(retention)["jobs"] == 200


def test_overdue_counts_what_would_go(platform: Platform, retention: Retention) -> None:
    many_finished(platform, 30)
    keep_message(platform, LONG_AGO)
    aged(platform, ended(platform, JobState.DEAD), LONG_AGO)
    with platform.database.transaction() as connection:
        counted = retention.overdue(connection)
    assert (counted["jobs"], counted["dead_messages"], counted["audit"]) == (30, 1, 0)
    assert pruned(retention)["jobs"] == 30


def test_it_gives_way_within_moments_where_a_lock_is_held(platform: Platform, retention: Retention) -> None:
    aged(platform, ended(platform, **keyed("k")), LONG_AGO)
    patient = Database(platform.database.url, lock_timeout=timedelta(seconds=20))
    with platform.database.transaction() as other:
        other.execute(text("LOCK TABLE idempotency_keys IN SHARE MODE"))
        began = time.monotonic()
        with pytest.raises(Contention):
            pruned(Retention(patient, finished=KEPT, audit=KEPT))
        assert time.monotonic() - began < 10
    patient.close()
    assert pruned(retention)["jobs"] == 1
