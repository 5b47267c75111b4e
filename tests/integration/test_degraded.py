"""What goes on while something is away, one behaviour each: real servers that refuse, and that are silent.

The whole platform, by the README's own commands: ``tests/e2e/test_degraded.py``. Redis away:
``test_rate_limits.py`` and ``test_api_cache.py``. Receivers away: ``test_slow_receivers.py``.
"""

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from celery import Celery
from sqlalchemy import text

from deploy.postgres_server import PostgresServer
from deploy.rabbitmq_server import RabbitMQServer
from models.database import Database
from models.deliveries.outbox import Outbox
from models.errors import BrokerUnavailable, DatabaseUnavailable
from models.identity.principals import Role
from tasks.app import make_app
from tasks.direct_delivery import DirectDelivery
from tasks.presence import Presence
from tasks.sweeper import Sweeper
from tests.kit.api import PASSWORD, Answer, Api, now, running_api
from tests.kit.delivering import Endpoint, deliveries, make_sending
from tests.kit.freezing import frozen
from tests.kit.platform import Platform
from tests.kit.receiver import WebhookReceiver
from tests.kit.servers import postgres_server, rabbitmq_server
from tests.kit.waiting import wait_until

ENTITIES = "/api/v1/entities"
AT_ONCE_SECONDS = 1.0
LOOKS = 5
"""Two of them may meet a stall of the machine; a wait of ours is met by each."""
FIRST_SECONDS = 5.0
"""Half a second of suspicion and two of probing, on a busy machine."""

Outage = Callable[[PostgresServer], AbstractContextManager[None]]


@contextmanager
def _gone(server: PostgresServer) -> Iterator[None]:
    server.kill()
    try:
        yield
    finally:
        server.start()


@contextmanager
def _silent(server: PostgresServer) -> Iterator[None]:
    with frozen(server.pid):
        yield


@pytest.fixture(scope="module")
def own() -> Iterator[PostgresServer]:
    """A PostgreSQL that may go away: nobody else uses it."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="module")
def module_api(own: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    data_dir: Path = tmp_path_factory.mktemp("data")
    with running_api(own.url, data_dir) as running:
        yield running


@pytest.fixture
def api(module_api: Api) -> Api:
    """The module's API, its database back from the test before."""
    wait_until(lambda: module_api.container.database.away_seconds is None, timeout_seconds=10)
    return module_api


def _doors(api: Api) -> dict[str, Callable[[], Answer]]:
    job = api.request("POST", ENTITIES, json_body={"name": "before"}).json["id"]
    login = {"email": f"{Role.USER}@example.com", "password": PASSWORD}
    return {
        "submit": lambda: api.request("POST", ENTITIES, json_body={"name": "x"}),
        "poll": lambda: api.request("GET", f"/api/v1/jobs/{job}"),
        "read": lambda: api.request("GET", f"{ENTITIES}/{api.users[Role.USER].id}"),
        "list": lambda: api.request("GET", ENTITIES),
        "log in": lambda: api.request("POST", "/auth/login", role=None, json_body=login),
    }


def _own_connection(server: PostgresServer) -> psycopg.Connection:
    return psycopg.connect(server.url.replace("+psycopg", ""), autocommit=True)


def _timed(door: Callable[[], Answer]) -> tuple[Answer, float]:
    began = now()
    answer = door()
    return answer, now() - began


def _all_at_once(doors: dict[str, Callable[[], Answer]]) -> dict[str, tuple[Answer, float]]:
    with ThreadPoolExecutor(len(doors)) as threads:
        return dict(zip(doors, threads.map(_timed, doors.values()), strict=True))


def _as_a_rule_at_once(slowest: list[float]) -> bool:
    return statistics.median(slowest) < AT_ONCE_SECONDS and max(slowest) < FIRST_SECONDS


# ---- PostgreSQL --------------------------------------------------------------------------


@pytest.mark.parametrize("outage", [_gone, _silent])
def test_database_away_is_503_with_retry_after_at_once(own: PostgresServer, api: Api, outage: Outage) -> None:
    doors = _doors(api)
    _all_at_once(doors)  # every connection that there will be is open
    with outage(own):
        for door, (answer, seconds) in _all_at_once(doors).items():
            assert (door, answer.status) == (door, 503)
            assert seconds < FIRST_SECONDS, door
        wait_until(lambda: api.container.database.away_seconds is not None, what="the breaker is open")
        looks = [_all_at_once(doors) for _ in range(LOOKS)]
        for look in looks:
            for door, (answer, _) in look.items():
                assert (door, answer.status, answer.headers["retry-after"]) == (door, 503, "1")
                assert answer.json["error"] == "Unavailable"
        assert _as_a_rule_at_once([max(seconds for _, seconds in look.values()) for look in looks])
        readies = [_timed(lambda: api.request("GET", "/health/ready", role=None)) for _ in range(LOOKS)]
        for ready, _ in readies:
            assert ready.status == 503
            assert "the database is away" in ready.json["checks"]["database"]
        assert _as_a_rule_at_once([seconds for _, seconds in readies])
        assert api.request("GET", "/health/live", role=None).status == 200
        scrapes = [_timed(lambda: api.request("GET", "/metrics", role=None)) for _ in range(LOOKS)]
        assert all("\nwaybill_database_away 1.0" in metrics.body.decode() for metrics, _ in scrapes)
        assert _as_a_rule_at_once([seconds for _, seconds in scrapes])
    wait_until(lambda: doors["submit"]().status == 202, timeout_seconds=10, what="it is back")
    wait_until(lambda: api.request("GET", "/health/ready", role=None).status == 200, timeout_seconds=10)
    assert "\nwaybill_database_away 0.0" in api.request("GET", "/metrics", role=None).body.decode()


def test_requests_that_wait_while_the_database_falls_silent_are_let_go(own: PostgresServer, api: Api) -> None:
    submit, looker = _doors(api)["submit"], _own_connection(own)
    with _own_connection(own) as holder, ThreadPoolExecutor(1) as threads:
        holder.autocommit = False
        holder.execute("LOCK TABLE waybill.jobs IN ACCESS EXCLUSIVE MODE")
        waiting = threads.submit(_timed, submit)
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        wait_until(lambda: looker.execute(waits).fetchone() != (0,), what="the request waits")
        with frozen(own.pid):
            began = now()
            answer, _ = waiting.result(timeout=20)
            seconds = now() - began
    looker.close()
    assert answer.status == 503
    assert seconds < FIRST_SECONDS


CREATION = {"operation": "create", "resource": "entities", "data": {"name": "x"}}


@pytest.mark.parametrize(
    ("path", "body"), [(ENTITIES, {"name": "x"}), ("/api/v1/bulk", {"operations": [CREATION] * 2})]
)
def test_what_is_accepted_is_told_though_the_database_goes_away_before_its_outcome(
    own: PostgresServer, api: Api, path: str, body: dict[str, object]
) -> None:
    count, headers = "SELECT count(*) FROM waybill.jobs", {"Prefer": "wait=4"}
    with _own_connection(own) as looker, ThreadPoolExecutor(1) as threads:
        before = looker.execute(count).fetchone()
        waiting = threads.submit(lambda: api.request("POST", path, json_body=body, headers=headers))
        wait_until(lambda: looker.execute(count).fetchone() != before, what="it is accepted")
        time.sleep(1)  # the API knows it too
        with _gone(own):
            answer = waiting.result(timeout=20)
    assert (answer.status, answer.headers["preference-applied"]) == (202, "wait=4")
    told = answer.json.get("jobs", [answer.json])
    assert [one["state"] for one in told] == ["queued"] * len(told)


def test_statement_that_is_merely_slow_is_left_alone(
    own: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.database.CONNECT_SECONDS", 20)  # however late the machine answers a probe
    database = Database(own.url)
    with database.snapshot() as connection:
        assert connection.execute(text("SELECT 7 FROM pg_sleep(3.5)")).scalar_one() == 7
    assert database.away_seconds is None
    database.close()


def test_full_server_refuses_new_connections_and_ours_go_on(own: PostgresServer) -> None:
    database, role = Database(own.url, pool_size=2), urlsplit(own.url).username  # nobody else's
    limit = f"ALTER ROLE {role} CONNECTION LIMIT"
    with psycopg.connect(own.superuser_url, autocommit=True) as superuser, database.snapshot() as held:
        with database.snapshot():  # a second one, that rests in the pool from now on
            pass
        superuser.execute(f"{limit} 0".encode())
        try:
            with pytest.raises(psycopg.OperationalError, match="too many connections") as full:
                _own_connection(own)
            database._watch.refused(full.value, now())
            assert held.execute(text("SELECT 7")).scalar_one() == 7
            with database.snapshot() as pooled:
                assert pooled.execute(text("SELECT 7")).scalar_one() == 7
            assert database.away_seconds is not None
        finally:
            superuser.execute(f"{limit} -1".encode())
    wait_until(lambda: database.away_seconds is None, timeout_seconds=10)
    database.close()


@pytest.mark.parametrize("outage", [_gone, _silent])
def test_job_at_work_when_the_database_goes_away_burns_no_attempt(
    own: PostgresServer, api: Api, outage: Outage
) -> None:
    job = api.request("POST", ENTITIES, json_body={"name": "patient"}).json["id"]
    with outage(own):
        for _ in range(5):
            with pytest.raises(DatabaseUnavailable):
                api.apply(job)
    wait_until(lambda: api.container.database.away_seconds is None, timeout_seconds=10)
    assert api.request("GET", f"/api/v1/jobs/{job}").json["attempt"] == 0
    api.apply(job)
    found = api.request("GET", f"/api/v1/jobs/{job}").json
    assert (found["state"], found["attempt"]) == ("succeeded", 1)


def test_connections_that_rested_over_an_outage_are_not_trusted(
    own: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.database._TRUSTED_SECONDS", 60)  # however fast it is back
    database = Database(own.url, pool_size=3)

    def use_all() -> None:
        with database.snapshot() as one, database.snapshot() as two, database.snapshot() as three:
            assert [each.execute(text("SELECT 7")).scalar_one() for each in (one, two, three)] == [7, 7, 7]

    with database.snapshot(), database.snapshot():  # two are made, and the third is not
        pass
    with _gone(own), database.snapshot(), database.snapshot(), pytest.raises(DatabaseUnavailable):
        database.snapshot().__enter__()
    wait_until(lambda: database.away_seconds is None, timeout_seconds=10)
    use_all()
    database.close()


def test_closed_database_leaves_no_thread_and_no_descriptor(own: PostgresServer, api: Api) -> None:
    container = type(api.container)(api.container.settings, role="brief")
    with container.database.snapshot() as connection:
        connection.execute(text("SELECT 1"))
    (line,) = container.database._watch._lines.values()
    thread = container.database._watch._thread
    container.close()
    assert line._socket.fileno() == -1
    assert isinstance(thread, threading.Thread)
    assert not thread.is_alive()


# ---- RabbitMQ ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_rabbitmq() -> Iterator[RabbitMQServer]:
    """A RabbitMQ that may be frozen: nobody else uses it."""
    with rabbitmq_server() as server:
        yield server


@pytest.fixture(params=["refused", "silent"])
def deaf(request: pytest.FixtureRequest, platform: Platform) -> Iterator[tuple[Celery, Callable[[], None]]]:
    """A Celery application whose broker goes away at the call."""
    if request.param == "refused":
        broker_url, pid = "amqp://127.0.0.1:1//", None
    else:
        server = request.getfixturevalue("own_rabbitmq")
        broker_url, pid = server.url, server.pid
    app = make_app(platform.settings.model_copy(update={"broker_url": broker_url}))
    outages = []

    def go_away() -> None:
        if pid is not None:
            outages.append(frozen(pid))
            outages[-1].__enter__()

    yield app, go_away
    for outage in outages:
        outage.__exit__(None, None, None)


def test_callbacks_go_out_while_the_broker_is_away(
    platform: Platform, deaf: tuple[Celery, Callable[[], None]]
) -> None:
    app, go_away = deaf
    sending = make_sending(platform)
    direct = DirectDelivery(platform.database, Outbox(), lambda: sending)
    sweeper = Sweeper(platform.database, platform.ledger, Outbox(), app, direct)
    with WebhookReceiver() as receiver:
        endpoint = Endpoint(platform, receiver.url())
        platform.made(platform.create(callback_endpoint_id=endpoint.id, reply_to="answers"))
        platform.rows("UPDATE deliveries SET announce_at = now() - interval '3 seconds'")
        go_away()
        with pytest.raises(BrokerUnavailable):
            sweeper.sweep()
        assert receiver.wait_for(1)[0].verify(endpoint.secret)["type"] == "job.succeeded"
    assert sending.wait_idle(10)
    sweeper.stop()
    assert [row.state for row in deliveries(platform)] == ["delivered"]
    assert [row.state for row in deliveries(platform, "reply")] == ["pending"]


def test_silent_broker_is_not_waited_for_by_those_who_only_look(
    platform: Platform, own_rabbitmq: RabbitMQServer
) -> None:
    app = make_app(platform.settings.model_copy(update={"broker_url": own_rabbitmq.url}))
    presence = Presence(app)
    assert presence.queue("waybill.jobs") is not None
    with frozen(own_rabbitmq.pid):
        wait_until(lambda: presence.queue("waybill.jobs") is None, timeout_seconds=10)
        with ThreadPoolExecutor(4) as threads:
            began = now()
            looks = [threads.submit(presence.queue, "waybill.jobs.bulk") for _ in range(4)]
            assert [one.result(timeout=20) for one in looks] == [None] * 4
            assert now() - began < FIRST_SECONDS
    wait_until(lambda: presence.queue("waybill.jobs") is not None, timeout_seconds=10)
    presence.close()
