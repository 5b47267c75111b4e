"""No order of steps of readers and writers, no crash and no wipe leaves an old entry in the cache."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis

from deploy.redis_server import RedisServer
from models.cache import redis_cache
from models.cache.cache import Entry, ListLook, Look, Mark
from models.cache.redis_cache import RedisCache, entry_key, list_key
from models.redis_client import RedisClient
from tests.kit.waiting import wait_until

KEY, LIST = entry_key("things", "1"), list_key("things", None)
Step = Callable[[], None]


@pytest.fixture(scope="module")
def redis(redis_server: RedisServer) -> Iterator[Redis]:
    with Redis.from_url(redis_server.url) as client:
        yield client


@pytest.fixture(scope="module")
def cache(redis_server: RedisServer) -> Iterator[RedisCache]:
    """It goes on asking a Redis that is there, however slow the machine is."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("models.redis_client.TIMEOUT_SECONDS", 10)
        client = RedisClient(redis_server.url, name="test")
    yield RedisCache(client)
    client.close()


@dataclass
class Story:
    """A database of one number, and those who read and write it through the cache."""

    cache: RedisCache
    truth: int = 1
    broken: list[str] = field(default_factory=list)

    def check(self, found: int | None, committed: int) -> None:
        if found is not None and found < committed:
            self.broken.append(f"showed {found} after {committed} was committed")


class Reader:
    """Looks, reads the truth, fills."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.look = Look()
        self.seen = 0

    def steps(self) -> list[Step]:
        def look() -> None:
            self.look = self.story.cache.look([KEY])
            entry = self.look.found.get(KEY)
            self.story.check(entry.version if entry else None, self.story.truth)

        def read() -> None:
            self.seen = self.story.truth

        def fill() -> None:
            self.story.cache.fill(self.look, {KEY: Entry(self.seen, b"%d" % self.seen)})

        return [look, read, fill]


class Writer:
    """Marks, commits, settles; or dies after its commit; or deletes."""

    def __init__(self, story: Story, version: int, *, dies: bool = False, deletes: bool = False) -> None:
        self.story, self.version, self.dies = story, version, dies
        self.entries = {} if deletes else {KEY: Entry(version, b"%d" % version)}
        self.mark = Mark("")

    def steps(self) -> list[Step]:
        def mark() -> None:
            self.mark = self.story.cache.mark([KEY], [])

        def commit() -> None:
            self.story.truth = self.version

        def settle() -> None:
            self.story.cache.settle(self.mark, self.entries)

        return [mark, commit] if self.dies else [mark, commit, settle]


def interleavings(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Every order of so many steps of each actor, as actors' numbers."""
    if len(lengths) == 1:
        yield [0] * lengths[0]
        return
    total = sum(lengths)
    last = len(lengths) - 1
    for rest in interleavings(lengths[:-1]):
        for places in combinations(range(total), lengths[-1]):
            others = iter(rest)
            yield [last if place in places else next(others) for place in range(total)]


def is_in_lane(order: Sequence[int]) -> bool:
    """Whether the second writer waits for the first one's commit."""
    return order.index(1) > [place for place, one in enumerate(order) if one == 0][1]


def told(story: Story, order: Sequence[int], actors: Sequence[list[Step]]) -> None:
    """Run the steps in this order, then look once more."""
    waiting = [iter(steps) for steps in actors]
    for actor in order:
        next(waiting[actor])()
    Reader(story).steps()[0]()


@pytest.mark.parametrize("dying", [None, 0, 1])
def test_every_order_of_a_reader_and_two_writers(cache: RedisCache, redis: Redis, dying: int | None) -> None:
    tried = 0
    for order in filter(is_in_lane, interleavings([2 if dying == 0 else 3, 2 if dying == 1 else 3, 3])):
        redis.delete(KEY)
        story = Story(cache)
        writers = [Writer(story, 2, dies=dying == 0).steps(), Writer(story, 3, dies=dying == 1).steps()]
        told(story, order, [*writers, Reader(story).steps()])
        assert not story.broken, (order, story.broken)
        tried += 1
    assert tried >= 50


def test_every_order_of_a_writer_one_that_deletes_and_readers_who_find_nothing(
    cache: RedisCache, redis: Redis
) -> None:
    for order in filter(is_in_lane, interleavings([3, 3, 2])):
        redis.delete(KEY)
        story = Story(cache)
        looks = [Reader(story).steps()[0] for _ in range(2)]
        writers = [Writer(story, 2).steps(), Writer(story, 3, deletes=True).steps()]
        told(story, order, [*writers, looks])
        assert not story.broken, (order, story.broken)


def test_every_order_of_two_writers_a_wipe_and_a_look(cache: RedisCache, redis: Redis) -> None:
    for order in filter(is_in_lane, interleavings([3, 3, 1, 1])):
        redis.delete(KEY)
        story = Story(cache)
        writers = [Writer(story, 2).steps(), Writer(story, 3).steps()]
        told(story, order, [*writers, [lambda: redis.delete(KEY)], [Reader(story).steps()[0]]])
        assert not story.broken, (order, story.broken)


def test_what_is_owed_again_while_it_is_being_paid_is_paid_again(
    cache: RedisCache, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_run, may_end, ask = threading.Event(), threading.Event(), cache._client.ask

    def slowly(command: Callable[[Redis], Any]) -> Any:
        answer = ask(command)
        has_run.set()
        assert may_end.wait(10)
        return answer

    monkeypatch.setattr(cache._client, "ask", slowly)
    cache.forget([KEY])
    assert has_run.wait(10)
    redis.set(KEY, "=1:old")
    cache.forget([KEY])
    may_end.set()
    wait_until(lambda: redis.get(KEY) is None, what="it is forgotten again")


@settings(max_examples=400)
@given(data=st.data())
def test_two_readers_two_writers_a_wipe_and_a_mark_that_expires(
    cache: RedisCache, redis: Redis, data: st.DataObject
) -> None:
    """Where nobody dies, all is well in the end, whatever Redis forgot on the way."""
    redis.delete(KEY)
    story = Story(cache)

    def forget() -> None:
        redis.delete(KEY)

    actors: list[list[Step]] = [
        [*Writer(story, 2).steps(), *Writer(story, 3).steps()],
        Reader(story).steps(),
        Reader(story).steps(),
        [forget, forget],
    ]
    numbers = [number for number, steps in enumerate(actors) for _ in steps]
    told(story, data.draw(st.permutations(numbers)), actors)
    assert cache.look([KEY]).found.get(KEY, Entry(3, b"")).version == 3


def test_every_order_of_lists_and_writers_of_other_lanes(cache: RedisCache, redis: Redis) -> None:
    """Both change the list and neither waits for the other; what was filled is looked at in between too."""
    for order in interleavings([3, 3, 4]):
        redis.delete(LIST)
        committed: set[int] = set()
        broken: list[tuple[set[int], set[int]]] = []
        looks, marks, seen = [ListLook()], [Mark(""), Mark("")], [b""]

        def look(looks: list[ListLook] = looks, committed: set[int] = committed) -> None:
            looks[0] = cache.look_at_list(LIST, "all")
            if looks[0].page is not None:
                shown = {int(one) for one in looks[0].page.split()}
                if shown < committed:
                    broken.append((shown, set(committed)))  # noqa: B023 - called in this round

        def read(seen: list[bytes] = seen, committed: set[int] = committed) -> None:
            seen[0] = b" ".join(b"%d" % one for one in sorted(committed))

        def fill(looks: list[ListLook] = looks, seen: list[bytes] = seen) -> None:
            if looks[0].page is None:
                cache.fill_list(looks[0], "all", seen[0])

        def writer(number: int, marks: list[Mark] = marks, committed: set[int] = committed) -> list[Step]:
            def mark() -> None:
                marks[number] = cache.mark([], [LIST])

            return [
                mark,
                lambda: committed.add(number),
                lambda: cache.settle(marks[number], {}),
            ]

        def look_again() -> None:
            look([ListLook()])

        waiting = [iter(one) for one in (writer(0), writer(1), [look, read, fill, look_again])]
        for actor in order:
            next(waiting[actor])()
        look()
        assert not broken, (order, broken)


def test_entry_that_came_over_an_expired_mark_is_replaced(cache: RedisCache, redis: Redis) -> None:
    """A commit that took too long: its mark was gone, a reader kept what was true before."""
    redis.delete(KEY)
    mark = cache.mark([KEY], [])
    redis.delete(KEY)
    cache.fill(cache.look([KEY]), {KEY: Entry(1, b"old")})
    cache.settle(mark, {KEY: Entry(2, b"new")})
    assert cache.look([KEY]).found[KEY] == Entry(2, b"new")


def test_deleted_instance_is_forgotten(cache: RedisCache, redis: Redis) -> None:
    redis.delete(KEY)
    cache.fill(cache.look([KEY]), {KEY: Entry(1, b"one")})
    cache.settle(cache.mark([KEY], []), {})
    assert cache.look([KEY]).leased == {KEY}


def test_mark_of_a_lost_writer_ends_though_others_go_on(
    cache: RedisCache, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis.delete(LIST)
    with monkeypatch.context() as patched:
        patched.setattr(redis_cache, "MARK_SECONDS", 3)
        cache.mark([], [LIST])
        ends = time.monotonic() + 3.1
    others = [cache.mark([], [LIST]) for _ in range(2)]
    for one in others:
        cache.settle(one, {})
    assert cache.look_at_list(LIST, "all").generation == ""
    last = cache.mark([], [LIST])
    wait_until(lambda: time.monotonic() > ends, what="the lost writer's mark has ended")
    assert cache.look_at_list(LIST, "all").generation == ""
    cache.settle(last, {})
    assert cache.look_at_list(LIST, "all").generation != ""


def test_list_that_one_owes_stays_marked_by_another(cache: RedisCache, redis: Redis) -> None:
    """Who marked it and could not settle it forgets his own mark, late, and no more."""
    redis.delete(LIST)
    first, second = cache.mark([], [LIST]), cache.mark([], [LIST])
    cache._forget(keys=[LIST], args=[first.token], client=redis)
    assert cache.look_at_list(LIST, "all").generation == ""
    cache.settle(second, {})
    assert cache.look_at_list(LIST, "all").generation != ""
