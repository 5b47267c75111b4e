"""What every limiter keeps, run on the one in memory and on the one in Redis."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from api_shim.gate.limiter import Limiter, Verdict
from api_shim.gate.memory_limiter import MemoryLimiter
from api_shim.gate.redis_limiter import RedisLimiter
from models.quotas import Quota

Result = TypeVar("Result")
MakeLimiter = Callable[[], Limiter]


@pytest.fixture(params=["memory", "redis"])
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> MakeLimiter:
    if request.param == "memory":
        return MemoryLimiter
    # however slow the machine is, a Redis that is there counts as one that is there
    monkeypatch.setattr("api_shim.gate.redis_limiter._ANSWER_SECONDS", 30)
    monkeypatch.setattr("api_shim.gate.redis_limiter._CONNECT_SECONDS", 30)
    url = request.getfixturevalue("redis_server").url
    return lambda: RedisLimiter(url, MemoryLimiter())


def run(make: MakeLimiter, story: Callable[[Limiter, str], Awaitable[Result]]) -> Result:
    """Tell a story about a fresh limiter and a key of its own."""

    async def told() -> Result:
        limiter = make()
        await limiter.start()
        if isinstance(limiter, RedisLimiter):
            assert limiter.is_up
        try:
            return await story(limiter, uuid.uuid4().hex)
        finally:
            await limiter.close()

    return asyncio.run(told())


def test_quota_is_let_pass_and_no_more(make: MakeLimiter) -> None:
    async def story(limiter: Limiter, key: str) -> list[Verdict]:
        return [await limiter.take(key, Quota(3, 60)) for _ in range(5)]

    verdicts = run(make, story)
    assert [one.is_allowed for one in verdicts] == [True, True, True, False, False]
    assert [one.remaining for one in verdicts] == [2, 1, 0, 0, 0]
    assert all(1 <= one.reset_seconds <= 60 for one in verdicts)


def test_racing_requests_get_the_quota_and_no_more(make: MakeLimiter) -> None:
    async def story(limiter: Limiter, key: str) -> list[Verdict]:
        return await asyncio.gather(*(limiter.take(key, Quota(50, 60)) for _ in range(200)))

    verdicts = run(make, story)
    assert sum(one.is_allowed for one in verdicts) == 50
    assert sorted(one.remaining for one in verdicts if one.is_allowed) == list(range(50))


def test_keys_do_not_share_a_quota(make: MakeLimiter) -> None:
    async def story(limiter: Limiter, key: str) -> list[Verdict]:
        return await asyncio.gather(*(limiter.take(f"{key}-{n}", Quota(1, 60)) for n in range(700)))

    assert all(one.is_allowed for one in run(make, story))


def test_there_is_room_again_after_the_seconds_that_were_said(make: MakeLimiter) -> None:
    async def story(limiter: Limiter, key: str) -> tuple[Verdict, Verdict]:
        quota = Quota(2, 5)
        for _ in range(2):
            await limiter.take(key, quota)
        refused = await limiter.take(key, quota)
        await asyncio.sleep(refused.reset_seconds)
        return refused, await limiter.take(key, quota)

    refused, later = run(make, story)
    assert (refused.is_allowed, later.is_allowed) == (False, True)


def test_quota_cannot_be_had_twice_around_the_edge_of_a_window(make: MakeLimiter) -> None:
    async def story(limiter: Limiter, key: str) -> list[tuple[float, float]]:
        quota, passed = Quota(5, 1), []
        until = time.monotonic() + 4
        while time.monotonic() < until:
            before = time.monotonic()
            if (await limiter.take(key, quota)).is_allowed:
                passed.append((before, time.monotonic()))
            await asyncio.sleep(0.01)
        return passed

    passed = run(make, story)
    assert len(passed) >= 10
    # Each was counted between two readings of the clock. A sixtieth of the window is the unit.
    assert all(later[1] - first[0] > 0.9 for first, later in zip(passed, passed[5:], strict=False))


def test_what_is_refused_does_not_count(make: MakeLimiter) -> None:
    async def story(limiter: Limiter, key: str) -> Verdict:
        quota = Quota(1, 1)
        until = time.monotonic() + 10
        await limiter.take(key, quota)
        await asyncio.sleep(0.5)  # so that a refusal, were it counted, would outlast what was let pass
        verdict = await limiter.take(key, quota)
        while not verdict.is_allowed and time.monotonic() < until:
            await asyncio.sleep(0.02)
            verdict = await limiter.take(key, quota)
        return verdict

    assert run(make, story).is_allowed
