"""Log-in, keys, endpoints, health, metrics, documentation, start and stop."""

import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from sqlalchemy import create_engine, make_url, text

from api_shim.routes.health import ReadinessCheck
from api_shim.server import bound_socket
from models.errors import ConfigurationError
from models.identity.principals import Role
from models.settings import Settings
from tests.kit.api import PASSWORD, Api, running_api, serve
from tests.kit.waiting import wait_until

ENTITIES = "/api/v1/entities"
MISSING: list[str] = []


async def _injected() -> str | None:
    return MISSING[0] if MISSING else None


@pytest.fixture(scope="module")
def api(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    data_dir: Path = tmp_path_factory.mktemp("data")
    with running_api(database_url, data_dir, checks=[ReadinessCheck("worker", _injected)]) as running:
        yield running


# ---- log in ----------------------------------------------------------------------------


def _login(api: Api, **document: Any) -> Any:
    return api.request("POST", "/auth/login", role=None, json_body=document)


def test_login_gives_a_token_that_works(api: Api) -> None:
    answer = _login(api, email="User@Example.com", password=PASSWORD)
    assert (answer.status, answer.json["tokenType"], answer.json["expiresIn"]) == (200, "Bearer", 1800)
    assert answer.headers["cache-control"] == "no-store"
    assert api.request("GET", ENTITIES, token=answer.json["accessToken"]).status == 200


def test_unknown_email_and_wrong_password_get_the_same_answer(api: Api) -> None:
    answers = [
        _login(api, email="user@example.com", password="wrong"),
        _login(api, email="nobody@example.com", password=PASSWORD),
    ]
    assert [answer.status for answer in answers] == [401, 401]
    bodies = [{**answer.json, "requestId": None} for answer in answers]
    assert bodies[0] == bodies[1]


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"email": "user@example.com"},
        {"email": 1, "password": "x"},
        {"email": "a@b.c", "password": ""},
        {"x": 1},
        [],
    ],
)
def test_malformed_login_is_400(api: Api, document: Any) -> None:
    answer = api.request("POST", "/auth/login", role=None, json_body=document)
    assert answer.status == 400
    assert PASSWORD not in answer.body.decode()


def test_many_logins_at_once_do_not_hold_up_the_others(api: Api) -> None:
    with ThreadPoolExecutor(40) as threads:
        logins = [
            threads.submit(lambda n=n: _login(api, email=f"u{n}@e.c", password="x").status) for n in range(60)
        ]
        lives = []
        while not all(login.done() for login in logins):
            lives.append(api.request("GET", "/health/live", role=None).status)
    with api.container.database.transaction() as connection:
        connection.execute(text("DELETE FROM login_attempts"))  # their address is everybody's here
    statuses = {login.result() for login in logins}
    assert statuses <= {401, 429, 503}
    assert 401 in statuses
    assert set(lives) == {200}
    assert len(lives) > 10  # a few, each behind many log-ins, where these stop the event loop


def test_published_keys_verify_our_tokens_and_hold_no_secret(api: Api) -> None:
    keys = api.request("GET", "/.well-known/jwks.json", role=None).json
    assert all("d" not in key and "k" not in key for key in keys["keys"])
    token = api.tokens[Role.USER]
    kid = jwt.get_unverified_header(token)["kid"]
    key = jwt.PyJWKSet.from_dict(keys)[kid]
    assert jwt.decode(token, key, algorithms=["EdDSA"], audience="waybill")["role"] == "user"


# ---- callback endpoints ----------------------------------------------------------------


def test_endpoint_is_registered_listed_without_its_secret_and_removed(api: Api) -> None:
    path = "/api/v1/callback-endpoints"
    made = api.request(
        "POST", path, json_body={"url": "https://example.com/x", "events": ["job.failed", "job.failed"]}
    )
    assert made.status == 201
    assert made.json["secret"].startswith("whsec_")
    assert made.headers["cache-control"] == "no-store"
    own = f"{path}/{made.json['id']}"
    assert made.headers["location"] == own
    (listed,) = api.request("GET", path).json["items"]
    assert listed == {name: value for name, value in made.json.items() if name != "secret"}
    assert (listed["events"], listed["disabled"]) == (["job.failed"], False)
    assert api.request("GET", path, role=Role.ADMIN).json["items"] == []
    assert api.request("DELETE", own, role=Role.ADMIN).status == 404
    assert api.request("DELETE", own).status == 204
    assert api.request("DELETE", own).status == 404
    assert api.request("DELETE", f"{path}/x").status == 404


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"url": "http://example.com/"},
        {"url": "https://127.0.0.1/"},
        {"url": "https://user:pass@example.com/"},
        {"url": "ftp://example.com/"},
        {"url": "https://example.com/", "events": ["job.unknown"]},
        {"url": "https://example.com/", "secret": "whsec_x"},
        {"url": "https://example.com/", "description": "a\u0000"},
        {"url": 5},
    ],
)
def test_endpoint_that_may_not_be_called_is_400(api: Api, document: Any) -> None:
    assert api.request("POST", "/api/v1/callback-endpoints", json_body=document).status == 400


# ---- health and metrics ----------------------------------------------------------------


def test_ready_needs_every_check(api: Api) -> None:
    assert api.request("GET", "/health/ready", role=None).json["checks"] == {"database": "ok", "worker": "ok"}
    MISSING.append("no worker consumes")
    try:
        answer = api.request("GET", "/health/ready", role=None)
    finally:
        MISSING.clear()
    assert (answer.status, answer.json["error"], answer.headers["retry-after"]) == (503, "Unavailable", "2")
    assert answer.json["checks"]["worker"] == "no worker consumes"


def test_ready_tells_an_old_schema(api: Api) -> None:
    with api.container.database.transaction() as connection:
        connection.exec_driver_sql("ALTER TABLE waybill.alembic_version RENAME TO hidden")
    try:
        answer = wait_until(
            lambda: next(
                (a for a in [api.request("GET", "/health/ready", role=None)] if a.status == 503), None
            )
        )
    finally:
        with api.container.database.transaction() as connection:
            connection.exec_driver_sql("ALTER TABLE waybill.hidden RENAME TO alembic_version")
    assert "migrate" in answer.json["checks"]["database"]
    wait_until(lambda: api.request("GET", "/health/ready", role=None).status == 200)


def _metrics(api: Api) -> tuple[str, dict[str, str]]:
    text = api.request("GET", "/metrics", role=None).body.decode()
    return text, dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))


def test_metrics_tell_what_happened(api: Api) -> None:
    job = api.request("POST", ENTITIES, json_body={"name": "a"}, headers={"Waybill-Priority": "bulk"}).json
    api.request("GET", "/nope/secret-path")
    time.sleep(2.1)
    text, lines = _metrics(api)
    assert float(lines['waybill_jobs_accepted_total{door="http"}']) >= 1
    assert float(lines['waybill_jobs{priority="bulk",state="queued"}']) == 1
    assert float(lines['waybill_oldest_open_job_seconds{priority="bulk"}']) >= 2
    assert float(lines["waybill_intake_batch_size_count"]) >= 1
    served = 'waybill_http_request_seconds_count{method="POST",route="/api/v1/entities",status="202"}'
    assert float(lines[served]) >= 1
    assert 'route="(none)"' in text
    assert "secret-path" not in text
    api.apply(job["id"])


def test_metrics_count_who_is_cancelled(api: Api) -> None:
    cancelled = 'waybill_jobs_finished_total{state="cancelled"}'
    before = float(_metrics(api)[1][cancelled])
    job = api.request("POST", ENTITIES, json_body={"name": "a"}).json
    for _ in range(2):
        api.request("POST", f"/api/v1/jobs/{job['id']}/cancel")
    assert float(_metrics(api)[1][cancelled]) == before + 1


# ---- documentation ---------------------------------------------------------------------


def test_openapi_describes_every_route_and_refers_only_to_what_is_there(api: Api) -> None:
    document = api.request("GET", "/openapi.json", role=None).json
    assert document["openapi"].startswith("3.1")
    described = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert described == {(route.method, route.path) for route in api.edge.app.router}
    names = set(document["components"]["schemas"])
    references = {part.split('"')[0] for part in json.dumps(document).split('"#/components/schemas/')[1:]}
    assert references <= names
    operations = [one for item in document["paths"].values() for one in item.values()]
    assert len({one["operationId"] for one in operations}) == len(operations)
    create = document["paths"][ENTITIES]["post"]
    assert {"202", "201", "400", "401", "403", "413", "415", "422", "503"} <= set(create["responses"])
    assert {"Idempotency-Key", "Prefer", "Waybill-Run-At"} <= {one["name"] for one in create["parameters"]}
    assert "id" in document["components"]["schemas"]["entities.Create"]["properties"]


def test_docs_page_loads_nothing_from_anywhere(api: Api) -> None:
    answer = api.request("GET", "/docs", role=None)
    page = answer.body.decode()
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "<script" not in page
    assert "src=" not in page
    assert "/api/v1/entities/{id}" in page


# ---- start and stop --------------------------------------------------------------------


def test_taken_port_is_one_line_that_says_what_to_do(api: Api, tmp_path: Path) -> None:
    settings = Settings(_env_file=None, data_dir=tmp_path, api_port=api.port)
    with pytest.raises(ConfigurationError, match=f"port {api.port} on 127.0.0.1 is taken.*WAYBILL_API_PORT"):
        bound_socket(settings)


@pytest.mark.parametrize(
    ("host", "variable"), [("no.such.host.invalid", "WAYBILL_API_HOST"), ("192.0.2.1", "WAYBILL_API_HOST")]
)
def test_foreign_address_is_one_line_that_says_what_to_do(tmp_path: Path, host: str, variable: str) -> None:
    with pytest.raises(ConfigurationError, match=variable):
        bound_socket(Settings(_env_file=None, data_dir=tmp_path, api_host=host, api_port=0))


def test_sigterm_sends_waiters_home_and_ends_cleanly(api: Api, database_url: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = serve(database_url, api.container.settings.data_dir, port, patience_seconds=60)
    answers: list[Any] = []
    url = f"http://127.0.0.1:{port}"

    def is_up() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    def wait_long() -> None:
        answers.append(
            api._pool.request(
                "POST",
                f"{url}{ENTITIES}",
                body=b'{"name":"a"}',
                headers={
                    "Authorization": f"Bearer {api.tokens[Role.USER]}",
                    "Content-Type": "application/json",
                    "Prefer": "wait=30",
                },
                timeout=40,
            )
        )

    try:
        wait_until(is_up, timeout_seconds=90)
        waiter = threading.Thread(target=wait_long)
        waiter.start()
        wait_until(lambda: _listens(api), timeout_seconds=60, what="the process waits for the job")
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        waiter.join(timeout=25)
        output, errors = process.communicate(timeout=25)
    finally:
        process.kill()
    assert time.monotonic() - began < 25  # it was told that it may wait for 30 s, and has 60 s to end
    assert process.returncode == 0, errors
    assert (answers[0].status, answers[0].headers["retry-after"]) == (202, "1")
    assert errors == ""
    assert all(json.loads(line)["level"] for line in output.splitlines())


def _listens(api: Api) -> bool:
    with api.container.database.transaction() as connection:
        return bool(
            connection.exec_driver_sql(
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE application_name LIKE 'waybill-api/%%' AND query LIKE 'LISTEN%%'"
            ).scalar()
        )


@contextmanager
def _database_away(api: Api) -> Iterator[None]:
    """PostgreSQL refuses every connection to this database, and drops those that are open."""
    url = make_url(api.container.settings.database_url)
    engine = create_engine(url.set(database="postgres"), isolation_level="AUTOCOMMIT")
    refuse = f'ALTER DATABASE "{url.database}" ALLOW_CONNECTIONS'
    with engine.connect() as connection:
        connection.exec_driver_sql(f"{refuse} false")
        connection.exec_driver_sql(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{url.database}'"  # noqa: S608
        )
        try:
            yield
        finally:
            connection.exec_driver_sql(f"{refuse} true")
    engine.dispose()


def test_database_away_is_503_with_retry_after_and_comes_back(api: Api) -> None:
    with _database_away(api):
        answers = [
            api.request("POST", ENTITIES, json_body={"name": "a"}),
            api.request("GET", f"{ENTITIES}?limit=1"),
            api.request("GET", "/api/v1/jobs/018f3c1e-0000-7000-8000-000000000000"),
            api.request("POST", ENTITIES, json_body={"name": "a"}),
        ]
        health = [api.request("GET", f"/health/{one}", role=None).status for one in ("live", "ready")]
        metrics = api.request("GET", "/metrics", role=None).status
    for answer in answers:
        assert (answer.status, answer.json["error"], answer.headers["retry-after"]) == (
            503,
            "Unavailable",
            "1",
        )
        assert "psycopg" not in answer.body.decode()
    assert health == [200, 503]
    assert metrics == 200
    wait_until(
        lambda: api.request("POST", ENTITIES, json_body={"name": "a"}).status == 202,
        timeout_seconds=15,
        what="it is back",
    )
    wait_until(lambda: api.request("GET", "/health/ready", role=None).status == 200)


def test_wait_survives_a_database_that_goes_and_comes_back(api: Api) -> None:
    job = api.request("POST", ENTITIES, json_body={"name": "a"}).json
    answers: list[Any] = []
    path = f"/api/v1/jobs/{job['id']}"
    waiter = threading.Thread(
        target=lambda: answers.append(api.request("GET", path, headers={"Prefer": "wait=25"}))
    )
    waiter.start()
    wait_until(
        lambda: api.edge.hub.watches.is_wanted,
        what="somebody waits",
    )
    with _database_away(api):
        time.sleep(1.5)
    wait_until(lambda: api.container.database.away_seconds is None, timeout_seconds=15, what="it is back")
    api.apply(job["id"])
    waiter.join(timeout=20)
    assert (answers[0].status, answers[0].json["state"]) == (200, "succeeded")
