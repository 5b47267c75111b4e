"""What every cache keeps, run on the one in Redis, on that one while Redis is away, and on none at all."""

from collections.abc import Iterator

import pytest

from deploy.redis_server import RedisServer
from models.cache.cache import Cache, Entry
from models.cache.no_cache import NoCache
from models.cache.redis_cache import RedisCache, entry_key, list_key
from models.ids import new_id
from models.redis_client import RedisClient
from tests.kit.waiting import wait_until


@pytest.fixture(params=["none", "redis", "redis that is away"])
def cache(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cache]:
    if request.param == "none":
        yield NoCache()
        return
    monkeypatch.setattr("models.redis_client.TIMEOUT_SECONDS", 10)  # one that is there is slow at most
    server: RedisServer = request.getfixturevalue("redis_server")
    url = server.url if request.param == "redis" else "redis://127.0.0.1:1/0"
    client = RedisClient(url, name="test")
    made = RedisCache(client)
    yield made
    made.close()
    client.close()


@pytest.fixture
def key() -> str:
    return entry_key("things", new_id())


def test_what_is_found_is_what_was_filled_or_nothing(cache: Cache, key: str) -> None:
    look = cache.look([key])
    assert look.found == {}
    cache.fill(look, {key: Entry(7, b'{"a": 1}\n\x00:=')})
    assert cache.look([key]).found in ({}, {key: Entry(7, b'{"a": 1}\n\x00:=')})


def test_change_is_never_hidden_by_what_was_kept_before(cache: Cache, key: str) -> None:
    cache.fill(cache.look([key]), {key: Entry(1, b"old")})
    mark = cache.mark([key], [])
    assert key not in cache.look([key]).found
    cache.settle(mark, {key: Entry(2, b"new")})
    assert cache.look([key]).found in ({}, {key: Entry(2, b"new")})


def test_fill_without_a_lease_is_refused(cache: Cache, key: str) -> None:
    early = cache.look([key])
    mark = cache.mark([key], [])
    late = cache.look([key])
    assert late.leased == frozenset()
    cache.fill(early, {key: Entry(1, b"old")})
    cache.fill(late, {key: Entry(1, b"old")})
    cache.settle(mark, {})
    assert cache.look([key]).found == {}


def test_lists_begin_anew_with_every_change(cache: Cache) -> None:
    things = list_key("things", new_id())
    look = cache.look_at_list(things, "first page")
    cache.fill_list(look, "first page", b"old")
    assert cache.look_at_list(things, "first page").page in (None, b"old")
    assert cache.look_at_list(things, "second page").page is None
    mark = cache.mark([], [things])
    assert cache.look_at_list(things, "first page").page is None
    cache.settle(mark, {})
    assert cache.look_at_list(things, "first page").page is None


def test_forgetting_everything_hides_what_was_kept(cache: Cache, key: str) -> None:
    cache.fill(cache.look([key]), {key: Entry(1, b"old")})
    cache.forget_all()
    cache.close()  # waits a little until it is done, or cannot be
    wait_until(lambda: cache.look([key]).found == {}, what="it is hidden")


def test_nothing_marked_costs_nothing(cache: Cache) -> None:
    cache.settle(cache.mark([], []), {})
