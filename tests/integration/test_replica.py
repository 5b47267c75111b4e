"""A primary that is lost and its synchronous standby, promoted: nothing accepted is, by one URL of both."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text

from deploy.doctor import examine
from models.database import Database
from models.errors import DatabaseUnavailable
from tests.kit.api import Api, running_api
from tests.kit.faulty_link import Mode, Weather
from tests.kit.freezing import frozen
from tests.kit.replicated_postgres import ReplicatedPostgres, replicated_postgres
from tests.kit.waiting import wait_until

ENTITIES = "/api/v1/entities"


@pytest.fixture(scope="module")
def servers() -> Iterator[ReplicatedPostgres]:
    """A primary and a standby: nobody else's."""
    with replicated_postgres() as made:
        yield made


@pytest.fixture(scope="module")
def api(servers: ReplicatedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    data_dir: Path = tmp_path_factory.mktemp("data")
    with running_api(servers.urls, data_dir) as running:
        yield running


def _open(database: Database) -> None:
    wait_until(lambda: database.away_seconds is None, timeout_seconds=30, what="it is found again")


def _kept(api: Api, accepted: set[str]) -> set[str]:
    with api.container.database.snapshot() as connection:
        return {str(row[0]) for row in connection.execute(text("SELECT id FROM jobs"))} & accepted


def test_what_was_accepted_survives_the_primary(servers: ReplicatedPostgres, api: Api) -> None:
    accepted: set[str] = set()
    is_over = threading.Event()

    def submit() -> None:
        while not is_over.is_set():
            answer = api.request("POST", ENTITIES, json_body={"name": "x"})
            if answer.status == 202:
                accepted.add(answer.json["id"])

    with ThreadPoolExecutor(4) as threads:
        submitting = [threads.submit(submit) for _ in range(4)]
        try:
            for _ in range(2):  # to the second host, and back to the first
                before = len(accepted)
                wait_until(lambda: len(accepted) > before + 50, timeout_seconds=60)  # noqa: B023
                assert servers.line is not None
                servers.line.set(Weather(Mode.SWALLOW))  # the standby hears nothing more
                is_over.wait(1)
                servers.fail_over()
                servers.join_standby()
                _open(api.container.database)
        finally:
            is_over.set()
        for one in submitting:
            one.result(timeout=60)
    assert _kept(api, accepted) == accepted

    with api.worker():  # the API listens to the new primary
        answer = api.request("POST", ENTITIES, json_body={"name": "y"}, headers={"Prefer": "wait=20"})
        assert answer.status == 201


def test_doctor_reaches_the_one_that_takes_writes(servers: ReplicatedPostgres, api: Api) -> None:
    (found,) = [one for one in examine(api.container.settings) if one.part == "database"]
    assert found.is_well
    assert found.detail.endswith(f"at 127.0.0.1:{servers.port}")
    assert ":***@" in found.detail


def test_connections_to_a_primary_that_fell_silent_are_let_go_once_another_was_promoted(
    servers: ReplicatedPostgres,
) -> None:
    database, old = Database(servers.urls, pool_size=2), servers.primary
    is_asleep = threading.Event()

    def wait_for_the_old_one() -> None:
        with database.snapshot() as connection:
            is_asleep.set()
            connection.execute(text("SELECT pg_sleep(90)"))

    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(wait_for_the_old_one)
        assert is_asleep.wait(20)
        with frozen(old.pid):
            servers.standby.promote()  # while nobody has noticed anything, or has: it must not matter
            with pytest.raises(DatabaseUnavailable):
                waiting.result(timeout=60)
            _open(database)
            with database.transaction() as connection:
                connection.execute(text("CREATE TABLE promoted (id int)"))
        servers.fail_over()
    servers.join_standby()
    database.close()


def test_standby_is_taken_for_a_database_that_is_away(servers: ReplicatedPostgres) -> None:
    database = Database(servers.standby.url, pool_size=2)  # as a virtual address that moved too early
    with pytest.raises(DatabaseUnavailable), database.transaction() as connection:
        connection.execute(text("CREATE TABLE too_early (id int)"))
    servers.fail_over()
    with database.transaction() as connection:
        connection.execute(text("CREATE TABLE in_time (id int)"))
    database.close()
    servers.join_standby()
