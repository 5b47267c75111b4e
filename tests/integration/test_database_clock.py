"""The database's time is known though the process' own clock is off, and while the database is away."""

from datetime import UTC, datetime, timedelta

from deploy.ports import free_port
from models.database import Database
from models.database_clock import DatabaseClock

_BUSY = timedelta(seconds=60)
_OFF = timedelta(hours=3)


def _own() -> datetime:
    return datetime.now(UTC) - _OFF


def test_time_is_the_databases_though_the_own_clock_is_off(database_url: str) -> None:
    database = Database(database_url, application_name="waybill-test", pool_size=1)

    now = DatabaseClock(database, own=_own).now()

    assert abs(now - datetime.now(UTC)) < _BUSY
    database.close()


def test_it_goes_on_from_what_was_heard_while_the_database_is_away(database_url: str) -> None:
    database = Database(database_url, application_name="waybill-test", pool_size=1)
    seconds = 0.0
    clock = DatabaseClock(database, own=_own, monotonic=lambda: seconds)
    before = clock.now()
    database.close()
    clock._database = _away()

    seconds = 100.0

    assert clock.now() - before == timedelta(seconds=100)


def test_the_own_clock_serves_until_the_database_was_heard() -> None:
    clock = DatabaseClock(_away(), own=_own)

    assert abs(clock.now() - _own()) < _BUSY


def _away() -> Database:
    url = f"postgresql://nobody:nothing@127.0.0.1:{free_port()}/none"
    return Database(url, application_name="waybill-test", pool_size=1)
