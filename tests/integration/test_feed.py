"""Following many jobs: what a follower is told does not depend on how much comes while it joins."""

import asyncio
from collections.abc import Iterator

import pytest

from api_shim.changes import feed as feed_module
from api_shim.changes.feed import Feed, Follower
from api_shim.web.threads import Threads
from models.job_history import JobHistory
from tests.kit.platform import Platform

MOST_WAITING = 5


@pytest.fixture
def feed(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Iterator[Feed]:
    monkeypatch.setattr(feed_module, "MOST_WAITING", MOST_WAITING)
    threads = Threads("past", 1, max_waiting=10)
    yield Feed(platform.database, JobHistory(), threads)
    threads.close()


def read(feed: Feed, platform: Platform) -> None:
    """Read once, and hand out."""
    with platform.database.snapshot() as connection:
        hand_out = feed.read(connection, everything=True)
    if hand_out is not None:
        hand_out()


async def told(feed: Feed, platform: Platform, follower: Follower, count: int) -> list[int]:
    """The sequences that a follower is told, until they are ``count`` or nothing more comes."""
    found: list[int] = []
    while len(found) < count:
        coming = asyncio.ensure_future(follower.next())
        for _ in range(100):
            if coming.done():
                break
            read(feed, platform)
            await asyncio.sleep(0.02)
        else:
            coming.cancel()
            break
        found += [job.sequence for job in await coming]
    return found


def test_who_joins_while_more_comes_than_it_can_hold_misses_nothing(platform: Platform, feed: Feed) -> None:
    (job,) = platform.accept(platform.create())
    first = platform.job(job).sequence

    async def follow() -> tuple[list[int], list[int]]:
        there, late = feed.arrive(), feed.arrive()
        there.subscribe(platform.ada.id, frozenset(), first - 1)
        assert await told(feed, platform, there, 1) == [first]
        late.subscribe(platform.ada.id, frozenset(), first)
        coming = asyncio.ensure_future(late.next())
        await asyncio.sleep(0)
        jobs = platform.accept(*(platform.create() for _ in range(2 * MOST_WAITING)))
        read(feed, platform)
        found = [job.sequence for job in await asyncio.wait_for(coming, 10)]
        sequences = [platform.job(one).sequence for one in jobs]
        return sequences, found + await told(feed, platform, late, len(jobs) - len(found))

    expected, found = asyncio.run(follow())
    assert found == expected


def test_who_joins_while_the_process_stops_is_sent_home(platform: Platform, feed: Feed) -> None:
    async def follow() -> list[object]:
        follower = feed.arrive()
        follower.subscribe(platform.ada.id, frozenset(), 0)
        coming = asyncio.ensure_future(follower.next())
        await asyncio.sleep(0)
        feed.end()
        return list(await coming)

    assert asyncio.run(follow()) == []
