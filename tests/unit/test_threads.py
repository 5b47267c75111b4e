"""Threads for what blocks: bounded, and not spent on those who have given up."""

import asyncio
import threading

import pytest

from api_shim.web.threads import Threads
from models.errors import Unavailable


def test_call_is_done_on_a_thread_and_its_error_raised() -> None:
    threads = Threads("some", 1, max_waiting=1)
    assert asyncio.run(threads.call(threading.current_thread)).name.startswith("some")
    with pytest.raises(ZeroDivisionError):
        asyncio.run(threads.call(lambda: 1 // 0))
    threads.close()


def test_who_would_wait_behind_too_many_is_refused() -> None:
    threads, gate = Threads("some", 1, max_waiting=1), threading.Event()

    async def come() -> list[object]:
        calls = [asyncio.ensure_future(threads.call(gate.wait, 10)) for _ in range(3)]
        await asyncio.sleep(0)
        gate.set()
        return await asyncio.gather(*calls, return_exceptions=True)

    first, second, third = asyncio.run(come())
    assert (first, second) == (True, True)
    assert isinstance(third, Unavailable)
    threads.close()


def test_who_has_waited_too_long_is_refused_and_the_work_not_done() -> None:
    threads, gate, done = Threads("some", 1, max_waiting=5, patience_seconds=0.5), threading.Event(), []
    has_begun = threading.Event()

    def wait() -> bool:
        has_begun.set()
        return gate.wait(10)

    async def come() -> list[object]:
        busy = asyncio.ensure_future(threads.call(wait))
        await asyncio.to_thread(has_begun.wait, 10)
        late = asyncio.ensure_future(threads.call(done.append, "late"))
        await asyncio.sleep(1)
        gate.set()
        return await asyncio.gather(busy, late, return_exceptions=True)

    busy, late = asyncio.run(come())
    assert busy is True
    assert isinstance(late, Unavailable)
    assert done == []
    threads.close()
