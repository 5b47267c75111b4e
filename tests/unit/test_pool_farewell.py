"""How a pool process of Celery's takes its leave: soon, also when nobody takes its last result."""

import time
from multiprocessing import Value

import pytest
from billiard import pool

from tasks.worker import FAREWELL_SECONDS, shorten_farewell


@pytest.fixture(autouse=True)
def billiards_own(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT"
    monkeypatch.setattr(pool, name, getattr(pool, name))  # put back afterwards


def test_pool_process_whose_last_result_is_not_taken_ends_soon() -> None:
    process = pool.Worker.__new__(pool.Worker)
    process.on_ready_counter = Value("i", 4)
    shorten_farewell()

    began = time.monotonic()
    was_taken = process._ensure_messages_consumed(completed=5)

    assert not was_taken
    assert FAREWELL_SECONDS * 0.5 < time.monotonic() - began < 15
