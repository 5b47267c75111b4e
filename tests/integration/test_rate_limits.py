"""Rate limits as a client meets them: alone, over two processes with Redis, and while Redis is away."""

import os
import re
import signal
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import redis

from deploy.redis_server import RedisServer
from models.identity.principals import Role
from tests.kit import servers
from tests.kit.api import PASSWORD, Answer, Api, running_api
from tests.kit.waiting import wait_until

ENTITIES = "/api/v1/entities"
LIMITS = "list=5/minute,read=4/minute,write=3/minute,delete=2/minute,login=3/minute,anonymous=6/minute"


@pytest.fixture
def api(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(database_url, tmp_path_factory.mktemp("data"), rate_limits=LIMITS) as running:
        yield running


@pytest.fixture(scope="module")
def own_redis() -> Iterator[RedisServer]:
    """One that may be paused: nobody else uses it."""
    with servers.redis_server() as server:
        yield server


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, a Redis that is there counts as one that is there."""
    monkeypatch.setattr("api_shim.gate.redis_limiter._ANSWER_SECONDS", 30)
    monkeypatch.setattr("api_shim.gate.redis_limiter._CONNECT_SECONDS", 30)


@contextmanager
def _apis(number: int, database_url: str, factory: pytest.TempPathFactory, **settings: Any) -> Iterator[Any]:
    data = factory.mktemp("data")
    with ExitStack() as stack:
        yield [stack.enter_context(running_api(database_url, data, **settings)) for _ in range(number)]


def _create(api: Api, **request: Any) -> Answer:
    return api.request("POST", ENTITIES, json_body={"name": "a"}, **request)


def _said(answer: Answer) -> tuple[str, int, int]:
    name, remaining, reset = answer.headers["ratelimit"].split(";")
    assert (remaining[:2], reset[:2]) == ("r=", "t=")
    return name, int(remaining[2:]), int(reset[2:])


def test_over_quota_is_429_with_the_time_to_wait(api: Api) -> None:
    answers = [_create(api) for _ in range(5)]
    assert [one.status for one in answers] == [202, 202, 202, 429, 429]
    for answer, remaining in zip(answers, (2, 1, 0, 0, 0), strict=True):
        assert answer.headers["ratelimit-policy"] == '"write";q=3;w=60'
        name, left, reset = _said(answer)
        assert (name, left) == ('"write"', remaining)
        assert 1 <= reset <= 60
    refused = answers[-1]
    assert refused.headers["content-type"] == "application/problem+json"
    assert (refused.json["status"], refused.json["error"]) == (429, "RateLimit")
    assert refused.headers["retry-after"] == str(refused.json["retryAfter"]) == str(_said(refused)[2])


def test_what_is_said_stands_on_every_answer_of_a_limited_route(api: Api) -> None:
    for answer in (
        api.request("GET", f"{ENTITIES}?bogus=1"),
        api.request("GET", f"{ENTITIES}/018f3c1e-0000-7000-8000-000000000000"),
        api.request("POST", ENTITIES, body=b"{"),
        api.request("GET", ENTITIES, token="x"),
        api.request("GET", ENTITIES, role=None),
        api.request("POST", "/auth/login", role=None, body=b"{}"),
        api.request("HEAD", ENTITIES),
    ):
        assert {"ratelimit", "ratelimit-policy"} <= set(answer.headers), answer
    for path in ("/health/live", "/openapi.json", "/nope"):
        assert "ratelimit" not in api.request("GET", path, role=None).headers


def test_each_user_and_each_route_has_a_quota_of_its_own(api: Api) -> None:
    assert [_create(api).status for _ in range(4)][-1] == 429
    assert _create(api, role=Role.ADMIN).status == 202
    assert api.request("GET", ENTITIES).status == 200
    missing = f"{ENTITIES}/018f3c1e-0000-7000-8000-000000000000"
    changed = [
        api.request(method, missing, json_body={"name": "b"}).status for method in ("PUT", "PATCH", "PUT")
    ]
    assert changed == [404, 404, 404]
    assert api.request("PATCH", missing, json_body={"name": "b"}).status == 429


def test_login_is_limited_by_address(api: Api) -> None:
    body = {"email": "user@example.com", "password": PASSWORD}
    statuses = [
        api.request(
            "POST", "/auth/login", role=None, json_body=body, headers={"X-Forwarded-For": f"1.1.1.{n}"}
        )
        for n in range(4)
    ]
    assert [one.status for one in statuses] == [200, 200, 200, 429]


def test_guesses_at_tokens_are_limited_by_address_and_spare_the_user(api: Api) -> None:
    statuses = [api.request("GET", ENTITIES, token=f"guess-{n}").status for n in range(8)]
    assert statuses == [401] * 6 + [429] * 2
    assert api.request("GET", ENTITIES).status == 200


def test_refusals_are_counted(api: Api) -> None:
    def counted() -> float:
        text = api.request("GET", "/metrics", role=None).body.decode()
        found = re.search(r'waybill_http_refusals_total\{error="RateLimit"\} (\S+)', text)
        return float(found[1]) if found else 0.0

    before = counted()
    assert [_create(api).status for _ in range(5)][-2:] == [429, 429]
    assert counted() == before + 2


def test_off_says_and_refuses_nothing(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    with _apis(1, database_url, tmp_path_factory, rate_limits="off") as [api]:
        answers = [api.request("GET", ENTITIES) for _ in range(120)]
        assert {one.status for one in answers} == {200}
        assert "ratelimit" not in answers[0].headers


def test_trusted_proxy_is_believed(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = {"rate_limits": LIMITS, "trusted_proxies": "127.0.0.0/8,10.0.0.0/8"}
    with _apis(1, database_url, tmp_path_factory, **settings) as [api]:

        def tried(forwarded: str) -> int:
            return api.request(
                "POST", "/auth/login", role=None, body=b"{}", headers={"X-Forwarded-For": forwarded}
            ).status

        assert [tried(f"9.9.9.{n}, 203.0.113.1, 10.1.1.1") for n in range(4)] == [400, 400, 400, 429]
        assert tried("203.0.113.2") == 400
        assert [tried(f"2001:db8::{n:x}") for n in range(4)] == [400, 400, 400, 429]
        assert tried("2001:db8:0:1::1") == 400


# ---- with Redis --------------------------------------------------------------------------


@pytest.mark.usefixtures("patient")
def test_quota_is_exact_over_two_processes(
    database_url: str, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = {"rate_limits": "write=50/minute", "redis_url": redis_server.url}
    with _apis(2, database_url, tmp_path_factory, **settings) as apis, ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(lambda n: _create(apis[n % 2]).status, range(120)))
        _forget(redis_server)
    assert statuses.count(202) == 50
    assert statuses.count(429) == 70


def test_paused_redis_holds_nobody_up_and_each_process_counts_on(
    database_url: str, own_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = {"rate_limits": "list=40/minute", "redis_url": own_redis.url}
    with _apis(1, database_url, tmp_path_factory, **settings) as [api]:
        before = [_timed(api) for _ in range(10)]
        assert {answer.status for answer, _ in before} == {200}
        pid = own_redis.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            during = [_timed(api) for _ in range(32)]
        finally:
            os.kill(pid, signal.SIGCONT)
        # One meets the silence and waits for it to be certain; from then on nobody asks.
        *others, slowest = sorted(seconds for _, seconds in during)
        assert slowest < 5.0
        assert statistics.median(others) < 0.2
        assert others[len(others) * 8 // 10] < 0.2, "one in five at most may meet a stall of the machine"
        # What Redis let pass is remembered here: 10 before, so 30 more.
        assert [answer.status for answer, _ in during] == [200] * 30 + [429] * 2


def test_redis_that_comes_back_is_asked_again(
    database_url: str, own_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = {"rate_limits": "list=1000/minute", "redis_url": own_redis.url}
    with _apis(2, database_url, tmp_path_factory, **settings) as [one, other]:
        pid = own_redis.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            assert one.request("GET", ENTITIES).status == 200
        finally:
            os.kill(pid, signal.SIGCONT)

        def is_shared() -> bool:
            left = _said(one.request("GET", ENTITIES))[1]
            return _said(other.request("GET", ENTITIES))[1] == left - 1

        wait_until(is_shared, timeout_seconds=20, what="both processes count in Redis")


@pytest.mark.usefixtures("patient")
def test_wiped_redis_counts_anew(
    database_url: str, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = {"rate_limits": "list=3/minute", "redis_url": redis_server.url}
    with _apis(1, database_url, tmp_path_factory, **settings) as [api]:
        assert [api.request("GET", ENTITIES).status for _ in range(3)] == [200] * 3
        _forget(redis_server)
        assert api.request("GET", ENTITIES).status == 200


def test_redis_that_is_not_there_stops_nobody(
    database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = {"rate_limits": "list=3/minute", "redis_url": "redis://127.0.0.1:1/0"}
    with _apis(1, database_url, tmp_path_factory, **settings) as [api]:
        assert [api.request("GET", ENTITIES).status for _ in range(4)] == [200, 200, 200, 429]


def _timed(api: Api) -> tuple[Answer, float]:
    began = time.monotonic()
    return api.request("GET", ENTITIES), time.monotonic() - began


def _forget(server: RedisServer) -> None:
    """What a wiped Redis has: nothing, no scripts either."""
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
        client.script_flush()
