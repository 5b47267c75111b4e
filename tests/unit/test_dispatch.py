"""Dispatch: who gets a thread, and who waits for whom."""

import threading
from collections.abc import Iterator

import pytest

from tasks.dispatch import ROOM, Dispatch
from tests.kit.waiting import wait_until


class Work:
    """Does items by name; those that begin with ``stuck`` wait until they are let go."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.under_way: list[str] = []
        self.most_at_once: dict[str, int] = {}
        self.gate = threading.Event()
        self._lock = threading.Lock()

    def __call__(self, item: str) -> bool | None:
        name = item.partition(":")[0]
        with self._lock:
            self.under_way.append(name)
            now = self.under_way.count(name)
            self.most_at_once[name] = max(self.most_at_once.get(name, 0), now)
        if name.startswith("stuck"):
            self.gate.wait(20)
        if name.startswith("broken"):
            raise RuntimeError("a fault of ours")
        with self._lock:
            self.under_way.remove(name)
            self.done.append(item)
        return None if name.startswith("stale") else not name.startswith("failing")


@pytest.fixture
def work() -> Iterator[Work]:
    made = Work()
    yield made
    made.gate.set()


def items(name: str, count: int) -> list[str]:
    return [f"{name}:{place}" for place in range(count)]


def test_stuck_receivers_hold_at_most_half_of_the_threads(work: Work) -> None:
    dispatch = Dispatch(work, threads=4)
    dispatch.put("well", items("well", 1))
    assert dispatch.wait_idle(5)
    for number in range(6):
        dispatch.put(f"stuck{number}", items(f"stuck{number}", 3))
    wait_until(lambda: len(work.under_way) == 2)
    dispatch.put("well", items("well", 50))
    wait_until(lambda: len(work.done) == 51)
    assert len(work.under_way) == 2
    work.gate.set()
    assert dispatch.wait_idle(5), "those on the bench get their turn"
    assert len(work.done) == 51 + 6 * 3


def test_receiver_gets_one_thread_until_it_has_answered(work: Work) -> None:
    dispatch = Dispatch(work, threads=16)
    dispatch.put("stuck", items("stuck", 10))
    wait_until(lambda: work.under_way)
    assert work.under_way == ["stuck"]
    work.gate.set()
    assert dispatch.wait_idle(5)
    assert work.done[0] == "stuck:0"


def test_receiver_that_fails_goes_on_one_at_a_time_and_in_order(work: Work) -> None:
    dispatch = Dispatch(work, threads=16)
    dispatch.put("failing", items("failing", 30))
    assert dispatch.wait_idle(5)
    assert work.done == items("failing", 30)
    assert work.most_at_once == {"failing": 1}


def test_receiver_that_was_not_asked_is_taken_for_no_better_than_it_was(work: Work) -> None:
    dispatch = Dispatch(work, threads=16)
    dispatch.put("slow", items("failing", 1) + items("stale", 1) + items("stuck", 9))
    wait_until(lambda: work.under_way == ["stuck"] or len(work.under_way) > 1)
    assert work.under_way == ["stuck"]
    work.gate.set()
    assert dispatch.wait_idle(5)


def test_what_has_no_room_is_handed_back_and_what_waits_can_be_taken_back(work: Work) -> None:
    dispatch = Dispatch(work, threads=4)
    dispatch.put("stuck", items("stuck", 1))
    wait_until(lambda: work.under_way)
    wanted = items("stuck", ROOM + 2)
    assert dispatch.put("stuck", wanted) == wanted[-2:]
    assert dispatch.drop("stuck") == wanted[:-2]
    assert dispatch.drop("nobody") == []
    work.gate.set()
    assert dispatch.wait_idle(5)
    assert work.done == ["stuck:0"]


def test_fault_of_ours_ends_no_thread(work: Work) -> None:
    dispatch = Dispatch(work, threads=2)
    dispatch.put("broken", items("broken", 5))
    assert dispatch.wait_idle(5)
    dispatch.put("well", items("well", 5))
    assert dispatch.wait_idle(5)
    assert sorted(work.done) == items("well", 5)


def test_closing_hands_back_what_was_not_begun_and_waits_for_the_rest(work: Work) -> None:
    dispatch = Dispatch(work, threads=4)
    dispatch.put("stuck", items("stuck", 3))
    wait_until(lambda: work.under_way)

    def open_once_closing() -> None:
        wait_until(lambda: dispatch._is_closed)
        work.gate.set()

    threading.Thread(target=open_once_closing).start()
    assert dispatch.close(5) == ["stuck:1", "stuck:2"]
    assert work.done == ["stuck:0"]
    assert dispatch.put("late", items("late", 1)) == ["late:0"]
