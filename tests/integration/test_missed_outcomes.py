"""What an endpoint missed while it was disabled: all of it is made up for once it is recovered, each once."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import pytest
from celery import Celery
from sqlalchemy import Connection, text

from models.database import Database
from models.deliveries import missed_outcomes
from models.deliveries.delivery_log import DeliveryLog
from models.deliveries.missed_outcomes import MissedOutcomes
from models.deliveries.outbox import Outbox
from models.errors import BrokerUnavailable, Contention
from tasks import sweeper as sweeper_module
from tasks.app import make_app
from tasks.courier import CallbackCourier
from tasks.sweeper import Sweeper
from tests.kit.delivering import Endpoint, deliveries
from tests.kit.platform import Platform
from tests.kit.tickets import BROKEN
from tests.kit.waiting import wait_until

EVERY_END = ("job.succeeded", "job.failed", "job.cancelled", "job.expired", "job.dead")


@pytest.fixture
def endpoint(platform: Platform) -> Endpoint:
    return Endpoint(platform, "http://127.0.0.1:9/hook", EVERY_END)


@pytest.fixture
def sweeper(platform: Platform, app: Celery, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sweeper]:
    """It looks for what was missed at each sweep, not once a second."""
    monkeypatch.setattr(sweeper_module, "PERIOD", timedelta(0))
    made = Sweeper(platform.database, platform.ledger, Outbox(), app)
    yield made
    made._publisher.close()


def disable(platform: Platform, endpoint: Endpoint) -> None:
    with platform.database.transaction() as connection:
        platform.container.endpoints.disable(connection, endpoint.id, "it was told to")


def recover(platform: Platform, endpoint: Endpoint, since: datetime | None = None) -> int:
    with platform.database.transaction() as connection:
        enabled = platform.container.endpoints.enable(connection, platform.ada.id, endpoint.id, since)
        return DeliveryLog().recover(connection, enabled, since)


def outcomes(platform: Platform, count: int) -> list[UUID]:
    return [job.id for job in platform.made(*(platform.create() for _ in range(count)))]


def told(platform: Platform) -> list[UUID]:
    """The jobs that callbacks are about, in the order of their outcomes."""
    return [row.job_id for row in deliveries(platform)]


def owes(platform: Platform) -> bool:
    """Whether something may still have to be made up for."""
    ((missed_since,),) = platform.rows("SELECT missed_since FROM callback_endpoints")
    return missed_since is not None


def sweep_until_nothing_is_owed(platform: Platform, sweeper: Sweeper) -> None:
    def is_done() -> bool:
        sweeper.sweep()
        return not owes(platform)

    wait_until(is_done, what="what was missed")


@pytest.fixture
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(missed_outcomes, "RECOVERED_AT_ONCE", 1)


# ---- more than one recovery makes up for -------------------------------------------------


def test_one_recovery_is_enough_however_much_was_missed(
    platform: Platform, endpoint: Endpoint, sweeper: Sweeper, one_at_a_time: None
) -> None:
    disable(platform, endpoint)
    missed = outcomes(platform, 3)

    assert recover(platform, endpoint) == 1
    sweep_until_nothing_is_owed(platform, sweeper)

    assert told(platform) == missed


def test_rest_is_made_up_for_while_the_broker_is_away(
    platform: Platform, endpoint: Endpoint, one_at_a_time: None
) -> None:
    nowhere = make_app(platform.settings.model_copy(update={"broker_url": "amqp://127.0.0.1:1"}))
    disable(platform, endpoint)
    missed = outcomes(platform, 2)
    recover(platform, endpoint)

    with pytest.raises(BrokerUnavailable):
        Sweeper(platform.database, platform.ledger, Outbox(), nowhere).sweep()

    assert told(platform) == missed


def test_recovery_that_would_take_long_enables_and_leaves_the_rest_to_the_sweep(
    platform: Platform, endpoint: Endpoint, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    disable(platform, endpoint)
    missed = outcomes(platform, 2)
    with monkeypatch.context() as slow:
        slow.setattr(missed_outcomes, "_AT_MOST", timedelta(milliseconds=50))
        slow.setattr(missed_outcomes, "_MAKE_UP", text("SELECT pg_sleep(20)"))
        assert recover(platform, endpoint) == 0
    assert platform.rows("SELECT disabled FROM callback_endpoints") == [(False,)]
    sweep_until_nothing_is_owed(platform, sweeper)
    assert told(platform) == missed


def test_endpoint_that_was_recovered_just_now_is_not_disabled_for_what_was_before(
    platform: Platform, endpoint: Endpoint
) -> None:
    endpoints = platform.container.endpoints
    platform.rows("UPDATE callback_endpoints SET failing_since = now() - interval '4 days'")
    with platform.database.transaction() as late:
        assert endpoints.has_lost_patience(late, endpoint.id)
        recover(platform, endpoint)
        assert endpoints.disable(late, endpoint.id, "nothing was delivered", is_still_failing=True) is None
    assert platform.rows("SELECT disabled FROM callback_endpoints") == [(False,)]


def test_one_that_is_disabled_again_gets_the_rest_when_it_is_recovered_again(
    platform: Platform, endpoint: Endpoint, sweeper: Sweeper, one_at_a_time: None
) -> None:
    disable(platform, endpoint)
    missed = outcomes(platform, 2)
    recover(platform, endpoint)
    disable(platform, endpoint)
    sweeper.sweep()
    assert told(platform) == missed[:1]
    missed += outcomes(platform, 1)

    assert recover(platform, endpoint) == 1
    sweep_until_nothing_is_owed(platform, sweeper)

    assert told(platform) == missed


def test_those_who_sweep_at_once_make_up_for_an_outcome_once(
    platform: Platform, endpoint: Endpoint, sweeper: Sweeper, one_at_a_time: None
) -> None:
    disable(platform, endpoint)
    missed = outcomes(platform, 3)
    recover(platform, endpoint)

    with platform.database.transaction() as connection:
        connection.execute(text("SELECT FROM callback_endpoints FOR NO KEY UPDATE"))
        sweeper.sweep()
        assert not MissedOutcomes(platform.database).make_up()
    assert told(platform) == missed[:1]
    other = MissedOutcomes(platform.database)
    for _ in range(2):
        other.make_up()
        sweeper.sweep()
    sweep_until_nothing_is_owed(platform, sweeper)

    assert told(platform) == missed


def walked(platform: Platform, missed: MissedOutcomes) -> list[UUID]:
    """Where a walk is after each of its steps; it begins once nobody older is at work on the server."""
    wait_until(
        lambda: platform.rows(
            "SELECT 1 FROM callback_endpoints WHERE awaited_xid IS NULL"
            " OR awaited_xid <= CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS bigint)"
        ),
        timeout_seconds=60,
        what="older transactions end",
    )
    places = []
    while missed.make_up():
        (walk,) = missed._walks.values()
        places.append(walk.place)
    return places


def test_walk_goes_on_where_it_was_and_twice_through_all(
    platform: Platform, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = outcomes(platform, 4)
    disable(platform, endpoint)
    missed = outcomes(platform, 3)
    after = [*before, *missed]
    recover(platform, endpoint)
    platform.rows("DELETE FROM deliveries WHERE job_id = ANY(:missed)", missed=missed)
    monkeypatch.setattr(missed_outcomes, "LOOKED_AT", 3)
    walker = MissedOutcomes(platform.database)

    assert walked(platform, walker) == after[2::2]
    assert told(platform) == [*before, *missed]
    assert owes(platform)
    platform.rows("DELETE FROM deliveries WHERE job_id = ANY(:missed)", missed=missed[:1])
    assert walked(platform, walker) == after[2::2]
    assert sorted(told(platform)) == sorted([*before, *missed])
    assert not owes(platform)


def test_step_that_is_not_committed_is_taken_again(
    platform: Platform, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    disable(platform, endpoint)
    missed = outcomes(platform, 5)
    recover(platform, endpoint)
    walker = MissedOutcomes(platform.database)
    assert walked(platform, walker) == []
    platform.rows("DELETE FROM deliveries")  # as if they had come to light only now
    monkeypatch.setattr(missed_outcomes, "LOOKED_AT", 3)
    wait_until(walker.make_up, timeout_seconds=60, what="older transactions end")
    with monkeypatch.context() as failing:
        failing.setattr(platform.database, "transaction", uncommitted(platform.database))
        with pytest.raises(Contention):
            walker.make_up()

    assert walked(platform, walker) == missed[4:]
    assert told(platform) == missed
    assert not owes(platform)


def uncommitted(database: Database) -> Callable[..., AbstractContextManager[Connection]]:
    """Its transactions, which end in a fault of the network."""
    original = database.transaction

    @contextmanager
    def transaction(*given: Any) -> Iterator[Connection]:
        with original(*given) as connection:
            yield connection
            raise Contention("nothing was committed")

    return transaction


# ---- outcomes that come to light late ----------------------------------------------------


def test_outcome_that_was_not_committed_yet_when_it_was_recovered_is_made_up_for(
    platform: Platform, endpoint: Endpoint, sweeper: Sweeper
) -> None:
    (late,) = platform.accept(platform.create())
    disable(platform, endpoint)
    with platform.database.transaction() as worker:
        platform.ledger.cancel(worker, late)  # sees it disabled
        assert recover(platform, endpoint) == 0
        for _ in range(3):
            sweeper.sweep()
        assert owes(platform)
    sweep_until_nothing_is_owed(platform, sweeper)

    assert told(platform) == [late]


def test_so_is_one_that_began_while_it_was_being_recovered(
    platform: Platform, endpoint: Endpoint, sweeper: Sweeper
) -> None:
    (late,) = platform.accept(platform.create())
    disable(platform, endpoint)
    with platform.database.transaction() as worker:
        with platform.database.transaction() as connection:
            enabled = platform.container.endpoints.enable(connection, platform.ada.id, endpoint.id)
            assert DeliveryLog().recover(connection, enabled, None) == 0
            platform.ledger.cancel(worker, late)  # has the younger transaction id, and sees it disabled
        for _ in range(3):
            sweeper.sweep()
        assert owes(platform)
    sweep_until_nothing_is_owed(platform, sweeper)

    assert told(platform) == [late]


def test_outcome_that_saw_it_enabled_is_not_told_twice(
    platform: Platform, endpoint: Endpoint, sweeper: Sweeper
) -> None:
    disable(platform, endpoint)
    missed = outcomes(platform, 1)
    recover(platform, endpoint)
    seen = outcomes(platform, 1)
    sweep_until_nothing_is_owed(platform, sweeper)

    assert told(platform) == missed + seen


# ---- how far back ------------------------------------------------------------------------


def test_what_was_missed_before_the_time_given_is_left_out_for_good(
    platform: Platform, endpoint: Endpoint, sweeper: Sweeper, one_at_a_time: None
) -> None:
    disable(platform, endpoint)
    outcomes(platform, 1)
    since = datetime.now(UTC)
    missed = outcomes(platform, 2)

    assert recover(platform, endpoint, since) == 1
    sweep_until_nothing_is_owed(platform, sweeper)

    assert told(platform) == missed


def test_later_recovery_takes_nothing_back_from_an_earlier_one(
    platform: Platform, endpoint: Endpoint, sweeper: Sweeper, one_at_a_time: None
) -> None:
    disable(platform, endpoint)
    missed = outcomes(platform, 3)
    recover(platform, endpoint)

    assert recover(platform, endpoint, datetime.now(UTC)) == 1
    sweep_until_nothing_is_owed(platform, sweeper)

    assert told(platform) == missed


def test_one_that_was_never_disabled_missed_nothing(platform: Platform) -> None:
    outcomes(platform, 1)
    endpoint = Endpoint(platform, "http://127.0.0.1:9/hook", EVERY_END)

    assert recover(platform, endpoint) == 0
    assert not owes(platform)


def test_rest_outlives_a_recovery_by_the_version_before(
    platform: Platform, endpoint: Endpoint, sweeper: Sweeper, one_at_a_time: None
) -> None:
    disable(platform, endpoint)
    missed = outcomes(platform, 2)
    recover(platform, endpoint)
    disable(platform, endpoint)
    platform.rows(
        "UPDATE callback_endpoints "
        "SET disabled = false, disabled_at = NULL, disabled_reason = NULL, failing_since = NULL"
    )
    sweep_until_nothing_is_owed(platform, sweeper)

    assert told(platform) == missed


# ---- what is no outcome ------------------------------------------------------------------


def die(platform: Platform) -> UUID:
    (job,) = platform.accept(platform.ticket("dies", note=BROKEN))
    for _ in range(3):
        platform.applier().apply([job])
    return job


def discard(platform: Platform, job: UUID) -> None:
    with platform.database.transaction() as connection:
        platform.ledger.discard(connection, [job])


def test_discard_is_no_second_outcome(platform: Platform, endpoint: Endpoint) -> None:
    job = die(platform)
    (told,) = deliveries(platform)
    disable(platform, endpoint)
    discard(platform, job)

    assert recover(platform, endpoint) == 0
    assert deliveries(platform) == [told]


def test_death_that_was_missed_is_told_once_though_it_was_discarded(
    platform: Platform, endpoint: Endpoint
) -> None:
    disable(platform, endpoint)
    job = die(platform)
    discard(platform, job)

    assert recover(platform, endpoint) == 1
    assert [row.job_id for row in deliveries(platform)] == [job]


# ---- what was claimed before -------------------------------------------------------------


def test_callback_that_is_looked_at_while_its_endpoint_is_recovered_is_sent(
    platform: Platform, endpoint: Endpoint
) -> None:
    outcomes(platform, 1)
    outbox, endpoints = Outbox(), platform.container.endpoints
    courier = CallbackCourier(cast(Any, None), cast(Any, None), endpoints, outbox)
    disable(platform, endpoint)
    with platform.database.transaction() as connection:
        (claimed,) = outbox.claim(connection, [row.id for row in deliveries(platform)])
    with platform.database.transaction() as connection:
        mine = outbox.extend(connection, claimed)
        assert mine is not None
        assert mine.is_disabled
        assert recover(platform, endpoint) == 0
        assert courier.obstacle(connection, mine) is None
    disable(platform, endpoint)
    with platform.database.transaction() as connection:
        assert courier.obstacle(connection, mine) is not None
        with pytest.raises(Contention):  # it waits until that is given up, so that it finds it so
            recover(platform, endpoint)


def test_what_takes_too_long_to_look_up_keeps_no_sweep(
    platform: Platform, endpoint: Endpoint, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[MissedOutcomes] = []

    def tire(missed: MissedOutcomes) -> bool:
        looks.append(missed)
        raise Contention("a statement took too long")

    monkeypatch.setattr(MissedOutcomes, "make_up", tire)
    for _ in range(3):
        sweeper.sweep()
    assert len(looks) == 1
