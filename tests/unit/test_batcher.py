"""Group commit: who shares a call, and who is answered when things go wrong."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from api_shim.web.batcher import Batcher
from models.errors import Contention, DatabaseUnavailable, Unavailable


def test_what_waits_at_the_same_moment_shares_a_call_in_order() -> None:
    calls: list[list[int]] = []
    has_begun, is_free = threading.Event(), threading.Event()

    def double(items: Sequence[int]) -> list[int]:
        has_begun.set()
        is_free.wait(5)
        calls.append(list(items))
        return [item * 2 for item in items]

    async def scenario() -> list[int]:
        batcher = Batcher("test", double, max_batch=4)
        futures = [batcher.call(0)]
        await asyncio.to_thread(has_begun.wait, 5)
        futures += [batcher.call(item) for item in range(1, 7)]
        is_free.set()
        answers = await asyncio.gather(*futures)
        batcher.close()
        return answers

    assert asyncio.run(scenario()) == [0, 2, 4, 6, 8, 10, 12]
    assert calls == [[0], [1, 2, 3, 4], [5, 6]]


@pytest.mark.parametrize("error", [ValueError("broken"), DatabaseUnavailable("away")])
def test_failing_call_reaches_everybody_and_the_next_is_served(error: Exception) -> None:
    failures = [error]

    def function(items: Sequence[int]) -> list[int]:
        if failures:
            raise failures.pop()
        return list(items)

    async def scenario() -> None:
        batcher = Batcher("test", function)
        with pytest.raises(type(error)):
            await batcher.call(1)
        assert await batcher.call(2) == 2
        batcher.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("death", [SystemExit(), KeyboardInterrupt(), MemoryError()])
def test_thread_survives_even_what_ends_processes(death: BaseException) -> None:
    deaths = [death]

    def function(items: Sequence[int]) -> list[int]:
        if deaths:
            raise deaths.pop()
        return list(items)

    async def scenario() -> None:
        batcher = Batcher("test", function)
        with pytest.raises((RuntimeError, MemoryError)):
            await asyncio.wait_for(batcher.call(1), 5)
        assert await asyncio.wait_for(batcher.call(2), 5) == 2
        batcher.close()

    asyncio.run(scenario())


def test_wrong_number_of_answers_is_an_error_for_all() -> None:
    async def scenario() -> None:
        batcher: Batcher[int, int] = Batcher("test", lambda items: [])
        with pytest.raises(RuntimeError, match="0 answers to 1 items"):
            await asyncio.wait_for(batcher.call(1), 5)
        batcher.close()

    asyncio.run(scenario())


def test_contention_is_tried_again_a_few_times() -> None:
    calls: list[int] = []

    def function(items: Sequence[int]) -> list[int]:
        calls.append(len(items))
        if len(calls) < 3:
            raise Contention("busy")
        return list(items)

    async def scenario() -> int:
        batcher = Batcher("test", function, attempts=3)
        answer = await batcher.call(7)
        batcher.close()
        return answer

    assert asyncio.run(scenario()) == 7
    assert len(calls) == 3


def test_lasting_contention_is_told() -> None:
    calls: list[int] = []

    def function(items: Sequence[int]) -> list[int]:
        calls.append(len(items))
        raise Contention("busy")

    async def scenario() -> None:
        batcher = Batcher("test", function, attempts=3)
        with pytest.raises(Contention):
            await batcher.call(7)
        batcher.close()

    asyncio.run(scenario())
    assert len(calls) == 3


def test_full_queue_refuses_at_once_with_retry_after() -> None:
    has_begun, is_free = threading.Event(), threading.Event()

    def function(items: Sequence[int]) -> list[int]:
        has_begun.set()
        is_free.wait(5)
        return list(items)

    async def scenario() -> None:
        batcher = Batcher("test", function, max_waiting=2)
        first = batcher.call(0)
        await asyncio.to_thread(has_begun.wait, 5)
        others = [batcher.call(1), batcher.call(2)]
        with pytest.raises(Unavailable) as refused:
            batcher.call(3)
        assert refused.value.retry_after == 1
        is_free.set()
        assert await asyncio.gather(first, *others) == [0, 1, 2]
        batcher.close()

    asyncio.run(scenario())


def test_closing_answers_what_waits() -> None:
    async def scenario() -> list[int]:
        batcher = Batcher("test", lambda items: list(items))
        futures = [batcher.call(item) for item in range(500)]
        await asyncio.to_thread(batcher.close)
        return await asyncio.gather(*futures)

    assert asyncio.run(scenario()) == list(range(500))


def test_caller_who_gave_up_does_not_disturb_the_others() -> None:
    is_free = threading.Event()

    def function(items: Sequence[int]) -> list[int]:
        is_free.wait(5)
        return list(items)

    async def scenario() -> None:
        batcher = Batcher("test", function)
        gone, staying = batcher.call(1), batcher.call(2)
        gone.cancel()
        is_free.set()
        assert await asyncio.wait_for(staying, 5) == 2
        batcher.close()

    asyncio.run(scenario())
