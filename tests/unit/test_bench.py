"""The benchmark's own arithmetic and parsing: a wrong ruler would flatter somebody."""

import itertools

import pytest

from tests.bench import progress
from tests.bench.figures import Spread, ratios
from tests.bench.load import Order, answer_length, build_requests
from tests.bench.processes import BenchFailure


def test_ratio_is_taken_round_by_round() -> None:
    assert ratios([20, 30, 40], [2, 2, 2]) == Spread(15, 10, 20)


def test_ratio_of_unequal_rounds_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        ratios([1, 2], [1])


def test_answer_length_counts_head_and_body() -> None:
    answer = b"HTTP/1.1 202 Accepted\r\nContent-Length: 3\r\nx: y\r\n\r\nabc"
    assert answer_length(answer + b"rest") == len(answer)


@pytest.mark.parametrize("part", [b"", b"HTTP/1.1 202 Accepted\r\ncontent-length: 3\r\n"])
def test_answer_length_waits_for_the_whole_head(part: bytes) -> None:
    assert answer_length(part) is None


def test_every_request_has_a_body_of_its_own() -> None:
    built = build_requests(Order(port=1, path="/x", requests=50, connections=1, token="t", first=7))
    assert len(set(built)) == 50
    assert all(answer_length(request) == len(request) for request in built)


def test_steady_rate_leaves_out_the_rows_seen_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(100)
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(progress.time, "sleep", lambda _seconds: None)
    counts = iter([0, 200, 600, 1_000])
    seen = progress.watch(lambda: next(counts), 1_000)
    assert (seen.first_count, seen.last_count) == (200, 1_000)
    assert seen.steady_rate == pytest.approx(800 / 2)


def test_a_standstill_is_an_error_not_a_slow_result(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0, 10)
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(progress.time, "sleep", lambda _seconds: None)
    with pytest.raises(BenchFailure, match="stalled at 3 of 5"):
        progress.watch(lambda: 3, 5)
