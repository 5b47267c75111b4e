"""The cache as callers meet it: hits, never too old, never somebody else's, never needed."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from redis import Redis

from deploy.redis_server import RedisServer
from models import metrics
from models.cache.redis_cache import entry_key, list_key
from models.container import Container
from models.identity.principals import Role
from models.ids import new_id
from models.redis_client import TIMEOUT_SECONDS
from tasks.applier import Applier
from tests.kit import servers
from tests.kit.api import PASSWORD, Api, running_api
from tests.kit.waiting import wait_until

ENTITIES = "/api/v1/entities"


@pytest.fixture(scope="module")
def own_redis() -> Iterator[RedisServer]:
    """One that may be paused and wiped: nobody else uses it."""
    with servers.redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def redis(own_redis: RedisServer) -> Iterator[Redis]:
    with Redis.from_url(own_redis.url) as client:
        yield client


@pytest.fixture(scope="module")
def api(database_url: str, own_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """It goes on asking a Redis that is there, however slow the machine is."""
    data_dir = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("models.redis_client.TIMEOUT_SECONDS", 10)
        with running_api(database_url, data_dir, redis_url=own_redis.url) as running:
            yield running


@pytest.fixture
def hasty_api(
    api: Api, database_url: str, own_redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Api]:
    """One that waits for Redis no longer than it does in production."""
    monkeypatch.setattr("models.redis_client.TIMEOUT_SECONDS", TIMEOUT_SECONDS)
    with running_api(database_url, tmp_path, redis_url=own_redis.url) as running:
        yield running


def _reads(kind: str) -> dict[str, float]:
    return {
        outcome: metrics.CACHE_READS.labels(kind, outcome)._value.get()
        for outcome in ("hit", "miss", "bypass")
    }


def _outcome(kind: str, before: dict[str, float]) -> list[str]:
    """What the cache had for the reads since ``before``."""
    after = _reads(kind)
    return [outcome for outcome in after for _ in range(int(after[outcome] - before[outcome]))]


def _get(api: Api, path: str, role: Role = Role.USER) -> Any:
    answer = api.request("GET", f"{ENTITIES}{path}", role=role)
    assert answer.status == 200, answer.body
    return answer.json


def _patch(api: Api, identifier: str, **members: Any) -> Any:
    job = api.request("PATCH", f"{ENTITIES}/{identifier}", json_body=members).json
    api.apply(job["id"])
    return api.request("GET", f"/api/v1/jobs/{job['id']}").json


# ---- one ---------------------------------------------------------------------------------


def test_read_after_a_write_is_a_hit_of_the_new_value(api: Api) -> None:
    entity = api.create("Ada")
    _get(api, f"/{entity['id']}")
    before = _reads("instance")
    assert _get(api, f"/{entity['id']}") == entity
    _patch(api, entity["id"], name="Grace")
    assert _get(api, f"/{entity['id']}")["name"] == "Grace"
    assert _outcome("instance", before) == ["hit", "hit"]


def test_read_that_misses_fills(api: Api, redis: Redis) -> None:
    entity = api.create("Ada")
    redis.flushall()
    before = _reads("instance")
    assert _get(api, f"/{entity['id']}") == _get(api, f"/{entity['id']}") == entity
    assert _outcome("instance", before) == ["hit", "miss"]


def test_what_is_kept_of_an_instance_is_shown_to_those_who_may_see_it_only(api: Api) -> None:
    entity = api.create("Ada", role=Role.ADMIN)
    path = f"{ENTITIES}/{entity['id']}"
    assert api.request("GET", path, role=Role.ADMIN).status == 200
    before = _reads("instance")
    assert api.request("GET", path, role=Role.USER).status == 404
    assert api.request("GET", path, role=Role.GUEST).json == entity
    assert _outcome("instance", before) == ["hit", "hit"]


def test_deleted_and_created_anew(api: Api) -> None:
    entity = api.create("Ada")
    path = f"{ENTITIES}/{entity['id']}"
    _get(api, f"/{entity['id']}")
    api.apply(api.request("DELETE", path).json["id"])
    assert api.request("GET", path).status == 404
    again = api.create("Grace", id=entity["id"])
    assert _get(api, f"/{entity['id']}") == again
    assert again["version"] == 3


def test_parts_go_with_their_entity(api: Api) -> None:
    entity = api.create("Ada")
    body = {"type": "note", "value": 1}
    job = api.request("POST", f"{ENTITIES}/{entity['id']}/related", json_body=body).json
    api.apply(job["id"])
    part = f"/{entity['id']}/related/{job['resourceId']}"
    assert _get(api, part) == _get(api, part)
    assert len(_get(api, f"/{entity['id']}/related")["items"]) == 1
    api.apply(api.request("DELETE", f"{ENTITIES}/{entity['id']}").json["id"])
    assert api.request("GET", ENTITIES + part).status == 404
    api.create("Grace", id=entity["id"])
    assert api.request("GET", ENTITIES + part).status == 404
    assert _get(api, f"/{entity['id']}/related")["items"] == []


def test_users_are_not_kept(api: Api, redis: Redis) -> None:
    user = api.users[Role.USER].id
    assert api.request("GET", f"/api/v1/users/{user}", role=Role.ADMIN).status == 200
    assert api.request("GET", "/api/v1/users", role=Role.ADMIN).status == 200
    assert list(redis.scan_iter("*users*")) == []


def test_version_that_is_demanded_comes_from_the_database(api: Api, redis: Redis) -> None:
    """Should the cache ever be old, minVersion is still kept."""
    entity = api.create("Ada")
    old = redis.get(entry_key("entities", entity["id"]))
    assert isinstance(old, bytes)
    _patch(api, entity["id"], name="Grace")
    redis.set(entry_key("entities", entity["id"]), old)
    assert _get(api, f"/{entity['id']}")["version"] == 1, "what this test plants is read"
    assert _get(api, f"/{entity['id']}?minVersion=2")["name"] == "Grace"


def test_entry_of_another_release_is_not_shown(api: Api, redis: Redis) -> None:
    entity = api.create("Ada")
    key = entry_key("entities", entity["id"])
    own = str(api.container.registry["entities"].type.read_fingerprint).encode()
    kept = redis.get(key)
    assert isinstance(kept, bytes)
    assert own in kept
    redis.set(key, kept.replace(own, b"another").replace(b"Ada", b"Eve"))
    assert _get(api, f"/{entity['id']}")["name"] == "Ada"


def test_large_instance_is_not_kept(api: Api, redis: Redis) -> None:
    entity = api.create("Ada", metadata={"text": "x" * 70_000})
    assert _get(api, f"/{entity['id']}") == entity
    assert not (redis.get(entry_key("entities", entity["id"])) or b"").startswith(b"=")


# ---- lists -------------------------------------------------------------------------------


def test_list_is_a_hit_until_something_in_it_changes(api: Api) -> None:
    entity = api.create("Ada")
    query = f"?q={entity['name']}&sort=-createdAt&limit=1"
    before = _reads("list")
    pages = [_get(api, query) for _ in range(2)]
    assert pages[0] == pages[1]
    assert pages[0]["items"] == [entity]
    _patch(api, entity["id"], description="changed")
    assert _get(api, query)["items"][0]["description"] == "changed"
    assert sorted(_outcome("list", before)) == ["hit", "miss", "miss"]


def test_change_of_anothers_leaves_a_users_list_and_renews_that_of_all(api: Api) -> None:
    api.create("Ada")
    for role in (Role.USER, Role.ADMIN):
        _get(api, "?limit=3", role)
    api.create("Root", role=Role.ADMIN)
    before = _reads("list")
    _get(api, "?limit=3")
    assert _outcome("list", before) == ["hit"]
    before = _reads("list")
    _get(api, "?limit=3", Role.ADMIN)
    assert _outcome("list", before) == ["miss"]


def test_cursors_lead_through_kept_pages(api: Api) -> None:
    made = {api.create("Ada")["id"] for _ in range(5)}
    for _ in range(2):
        seen, cursor = set(), ""
        while cursor is not None:
            page = _get(api, f"?limit=2&sort=-createdAt{cursor and '&cursor=' + cursor}")
            seen |= {item["id"] for item in page["items"]}
            cursor = page["nextCursor"]
        assert made <= seen


# ---- a worker that dies, a Redis that goes -------------------------------------------------


def test_worker_that_dies_between_commit_and_settling_leaves_nothing_old(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    entity = api.create("Ada")
    _get(api, f"/{entity['id']}")
    _get(api, "?limit=1&sort=-createdAt")
    monkeypatch.setattr(api.container.views, "settle", lambda *_: None)
    _patch(api, entity["id"], name="Grace")
    before = _reads("instance")
    assert _get(api, f"/{entity['id']}")["name"] == "Grace"
    assert _get(api, "?limit=1&sort=-createdAt")["items"][0]["name"] == "Grace"
    assert _outcome("instance", before) == ["bypass"]


def test_change_is_not_shown_before_its_commit(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    entity = api.create("Ada")
    marked: list[Any] = []
    mark = api.container.views.mark

    def look(connection: Any, changes: Any) -> Any:
        made = mark(connection, changes)
        marked.append(_get(api, f"/{entity['id']}")["name"])
        return made

    monkeypatch.setattr(api.container.views, "mark", look)
    _patch(api, entity["id"], name="Grace")
    assert marked == ["Ada"]
    assert _get(api, f"/{entity['id']}")["name"] == "Grace"


def test_wiped_redis_is_filled_anew(api: Api, redis: Redis) -> None:
    entity = api.create("Ada")
    redis.flushall()
    redis.script_flush()
    assert _get(api, f"/{entity['id']}") == entity
    _patch(api, entity["id"], name="Grace")
    assert _get(api, f"/{entity['id']}")["name"] == "Grace"


def test_silent_redis_delays_a_read_by_one_time_out_and_what_it_missed_is_forgotten(
    hasty_api: Api, own_redis: RedisServer, redis: Redis
) -> None:
    api = hasty_api
    entity = api.create("Ada")
    _get(api, f"/{entity['id']}")
    pid = own_redis.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert _patch(api, entity["id"], name="Grace")["state"] == "succeeded"
        assert _get(api, f"/{entity['id']}")["name"] == "Grace"
        assert time.monotonic() - began < 20 * TIMEOUT_SECONDS
    finally:
        os.kill(pid, signal.SIGCONT)
    key = entry_key("entities", entity["id"])
    wait_until(lambda: b"Ada" not in (redis.get(key) or b""), what="the entry is forgotten")
    whose = str(api.users[Role.USER].id)
    wait_until(lambda: redis.get(list_key("entities", whose)) is None, what="the list is forgotten")
    assert _get(api, f"/{entity['id']}")["name"] == "Grace"


def test_what_a_worker_without_redis_changes_is_forgotten_by_those_who_reach_it(
    api: Api, redis: Redis
) -> None:
    entity = api.create("Ada")
    key = entry_key("entities", entity["id"])
    cut_off = Container(
        api.container.settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"}), role="cut-off"
    )
    applier = Applier(
        cut_off.database,
        cut_off.ledger,
        cut_off.registry,
        cut_off.users,
        cut_off.views,
        cut_off.retry_policy,
    )
    _get(api, "?limit=1&sort=-createdAt")
    wait_until(lambda: redis.get(key), what="it is kept")
    job = api.request("PATCH", f"{ENTITIES}/{entity['id']}", json_body={"name": "Grace"}).json
    applier.apply([UUID(job["id"])])
    wait_until(lambda: _get(api, f"/{entity['id']}")["name"] == "Grace", what="the entry is forgotten")
    first = lambda: _get(api, "?limit=1&sort=-createdAt")["items"][0]["name"]  # noqa: E731
    wait_until(lambda: first() == "Grace", what="the list is forgotten")
    cut_off.close()


def test_new_worker_forgets_what_its_predecessor_may_have_owed(api: Api, redis: Redis) -> None:
    entity = api.create("Ada")
    key = entry_key("entities", entity["id"])
    assert redis.get(key)
    redis.set("another:application", "stays")
    mark = entry_key("entities", new_id())
    api.container.cache.mark([mark], [])
    api.container.cache.forget_all()
    wait_until(lambda: redis.get(key) is None, what="the entry is forgotten")
    assert redis.get("another:application") == b"stays"
    assert (redis.get(mark) or b"").startswith(b"!"), "a change under way stays marked"


# ---- sessions ------------------------------------------------------------------------------


def test_session_is_noted_for_a_day_and_forgotten_at_its_end(api: Api, redis: Redis) -> None:
    body = {"email": api.users[Role.USER].email, "password": PASSWORD}
    session = api.request("POST", "/auth/login", role=None, json_body=body).json
    (key,) = redis.scan_iter("waybill:session:*")
    assert json.loads(redis.get(key) or b"") == {"userId": str(api.users[Role.USER].id), "role": "user"}
    assert 23 * 3600 < redis.ttl(key) <= 24 * 3600
    redis.flushall()
    token = {"refreshToken": session["refreshToken"]}
    renewed = api.request("POST", "/auth/refresh", role=None, json_body=token)
    assert renewed.status == 200, "Redis is not the truth"
    assert list(redis.scan_iter("waybill:session:*")) == [key]
    ended = {"refreshToken": renewed.json["refreshToken"]}
    assert api.request("POST", "/auth/logout", role=None, json_body=ended).status == 204
    assert list(redis.scan_iter("waybill:session:*")) == []
