"""What 202 promises, under races and faults: one key is one job, whoever answers and whatever goes away."""

import itertools
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import text

from deploy.postgres_server import PostgresServer
from models.identity.principals import Role
from tests.kit.api import Answer, Api, running_api, serve
from tests.kit.client import Client
from tests.kit.servers import postgres_server
from tests.kit.waiting import wait_until

ENTITIES, BULK = "/api/v1/entities", "/api/v1/bulk"
_ANSWERS_BETWEEN_DROPS = 10
"""To each caller: whoever met the last drop is past it."""
pytestmark = pytest.mark.timeout(600)


# ---- two processes ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Api, list[Client]]]:
    """Two API processes on one database, each with a client of the same user."""
    data_dir: Path = tmp_path_factory.mktemp("data")
    with running_api(database_url, data_dir) as api:
        ports = [_free_port(), _free_port()]
        processes = [serve(database_url, data_dir, port) for port in ports]
        try:
            clients = [Client(f"http://127.0.0.1:{port}", api.tokens[Role.USER]) for port in ports]
            for port in ports:
                wait_until(lambda port=port: _listens(port), timeout_seconds=90, what=f"{port} listens")
            yield api, clients
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.communicate(timeout=20)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _race(clients: list[Client], path: str, bodies: list[Any], key: str) -> list[Any]:
    """Twenty at once, in turn to each client, with each of ``bodies`` in turn."""
    start = threading.Barrier(20)

    def send(number: int) -> Any:
        start.wait()
        body = bodies[number // len(clients) % len(bodies)]
        return clients[number % len(clients)].call("POST", path, body, {"Idempotency-Key": key})

    with ThreadPoolExecutor(20) as threads:
        return list(threads.map(send, range(20)))


@pytest.mark.parametrize("number", range(3))
def test_twenty_at_once_over_two_processes_are_one_job(two: tuple[Api, list[Client]], number: int) -> None:
    answers = _race(two[1], ENTITIES, [{"name": "one"}], f"race-{number}")
    assert [answer.status for answer in answers] == [202] * 20
    assert len({answer.json["id"] for answer in answers}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1


def test_of_two_requests_that_race_for_a_key_one_wins_and_the_other_is_422(
    two: tuple[Api, list[Client]],
) -> None:
    answers = _race(two[1], ENTITIES, [{"name": "one"}, {"name": "other"}], "two-requests")
    assert sorted(answer.status for answer in answers) == [202] * 10 + [422] * 10
    assert len({answer.json["id"] for answer in answers if answer.status == 202}) == 1


def test_bulks_that_race_over_two_processes_are_one_set_of_jobs(two: tuple[Api, list[Client]]) -> None:
    operations = [
        {"operation": "create", "resource": "entities", "data": {"name": f"n{n}"}} for n in range(50)
    ]
    answers = _race(two[1], BULK, [{"operations": operations}], "bulk-race")
    assert [answer.status for answer in answers] == [202] * 20
    assert len({tuple(job["id"] for job in answer.json["jobs"]) for answer in answers}) == 1


def test_key_is_the_principals_own_in_every_process(two: tuple[Api, list[Client]]) -> None:
    api, clients = two
    admin = Client(clients[1].url, api.tokens[Role.ADMIN])
    answers = [
        one.call("POST", ENTITIES, {"name": "x"}, {"Idempotency-Key": "shared"}) for one in (*clients, admin)
    ]
    assert answers[0].json["id"] == answers[1].json["id"] != answers[2].json["id"]


# ---- a database that goes away under load ----------------------------------------------


@dataclass
class _Load:
    """Callers that each repeat a request under its key until it is taken.

    Attributes:
        answers: How many each caller has had.
        refused: When a request that was not taken was sent and answered, with which status and Retry-After.
        taken: The jobs that callers were told of, by key; every answer for a key.
    """

    api: Api
    answers: Counter[int]
    refused: list[tuple[float, float, int, str | None]] = field(default_factory=list)
    taken: dict[str, set[str]] = field(default_factory=dict)
    is_over: threading.Event = field(default_factory=threading.Event)

    def call(self, caller: int) -> None:
        for number in itertools.count():
            if self.is_over.is_set():
                return
            key = f"{caller}-{number}"
            while (answer := self._send(caller, key)).status != 202:
                time.sleep(0.05)
            self.taken.setdefault(key, set()).add(answer.json["id"])

    def _send(self, caller: int, key: str) -> Answer:
        sent, headers = time.monotonic(), {"Idempotency-Key": key}
        answer = self.api.request("POST", ENTITIES, json_body={"name": key}, headers=headers)
        if answer.status != 202:
            self.refused.append((sent, time.monotonic(), answer.status, answer.headers.get("retry-after")))
        self.answers[caller] += 1
        return answer

    def wait_answered(self, times: int) -> None:
        """Wait until each caller has had so many more answers."""
        before = self.answers.copy()
        wait_until(
            lambda: all(self.answers[caller] >= count + times for caller, count in before.items()),
            timeout_seconds=60,
            what="every caller is answered",
        )


@contextmanager
def _under_load(api: Api, callers: int = 4) -> Iterator[_Load]:
    load = _Load(api, answers=Counter(dict.fromkeys(range(callers), 0)))
    threads = [threading.Thread(target=load.call, args=(caller,)) for caller in range(callers)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: len(load.taken) > 100, timeout_seconds=60, what="the load runs")
        yield load
    finally:
        load.is_over.set()
        for thread in threads:
            thread.join(timeout=40)
    with api.container.database.snapshot() as connection:
        rows = connection.execute(text("SELECT key, job_id FROM idempotency_keys")).all()
        jobs = connection.execute(text("SELECT id, payload->>'name' FROM jobs")).all()
    assert {key: {str(job)} for key, job in rows} == load.taken, "a key is not its one job"
    assert sorted((key, str(job)) for job, key in jobs) == sorted(
        (key, *found) for key, found in load.taken.items()
    ), "a job was lost or doubled"


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[PostgresServer, Api]]:
    """An API on a PostgreSQL of its own, to be restarted."""
    with postgres_server() as server, running_api(server.url, tmp_path) as api:
        yield server, api


def test_connections_that_are_dropped_under_load_are_noticed_by_nobody(
    own: tuple[PostgresServer, Api],
) -> None:
    server, api = own
    drop = """
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE 'waybill-test/%'
    """
    with psycopg.connect(server.superuser_url, autocommit=True) as superuser, _under_load(api) as load:
        for _ in range(10):
            found = superuser.execute(drop).fetchone()
            assert found
            assert found[0] > 0
            load.wait_answered(_ANSWERS_BETWEEN_DROPS)
    assert load.refused == []


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_restart_under_load_refuses_only_while_it_lasts(own: tuple[PostgresServer, Api], how: str) -> None:
    server, api = own
    with _under_load(api) as load:
        began = time.monotonic()
        getattr(server, how)()
        server.start()
        wait_until(lambda: api.container.database.away_seconds is None, timeout_seconds=30, what="it is back")
        back = time.monotonic()
        before = len(load.taken)
        wait_until(lambda: len(load.taken) > before + 100, timeout_seconds=60, what="the load runs again")
    assert {refusal[2:] for refusal in load.refused} <= {(503, "1")}
    assert [refusal for refusal in load.refused if refusal[1] < began or refusal[0] > back] == []
