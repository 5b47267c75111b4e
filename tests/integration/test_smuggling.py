"""Requests that two servers could read in two ways: each is refused and counted; nothing behind it runs."""

import re
import socket
import time
from collections.abc import Iterator

import pytest
from prometheus_client import REGISTRY

from models.identity.principals import Role
from tests.kit.api import Api, running_api

ENTITIES = "/api/v1/entities"
SMUGGLED = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = "Transfer-Encoding: chunked"

HEADS = {
    "two lengths": ["Content-Length: 5", "Content-Length: 6"],
    "the same length twice": ["Content-Length: 5", "Content-Length: 5"],
    "a list of lengths": ["Content-Length: 5, 5"],
    "a length with a sign": ["Content-Length: +5"],
    "a length in hexadecimal": ["Content-Length: 0x5"],
    "a length beyond 64 bits": ["Content-Length: 99999999999999999999999"],
    "a length that is folded": ["Content-Length:\r\n 5"],
    "length, then chunks": ["Content-Length: 5", CHUNKED],
    "chunks, then length": [CHUNKED, "Content-Length: 5"],
    "chunked twice": [CHUNKED, CHUNKED],
    "chunked, identity": ["Transfer-Encoding: chunked, identity"],
    "an unknown coding": ["Transfer-Encoding: xchunked"],
    "a coding in quotes": ['Transfer-Encoding: "chunked"'],
    "a coding behind a vertical tab": ["Transfer-Encoding: \x0bchunked"],
    "a blank before the colon": ["Transfer-Encoding : chunked"],
    "a header folded by a blank": ["X: a\r\n b", "Content-Length: 5"],
    "a header folded by a tab": ["X: a\r\n\tb", "Content-Length: 5"],
    "a line that ends in LF alone": ["X: a\nContent-Length: 5"],
    "a CR in a value": ["X: a\rContent-Length: 5"],
    "NUL in a name": ["X\x00: a", "Content-Length: 5"],
    "NUL in a value": ["X: a\x00", "Content-Length: 5"],
    "a line without a colon": ["nonsense", "Content-Length: 5"],
    "two hosts": ["Host: y", "Content-Length: 5"],
}
CHUNKS = {
    "a negative size": b"-1\r\nab\r\n0\r\n\r\n",
    "a size beyond 64 bits": b"fffffffffffffffff\r\nab\r\n0\r\n\r\n",
    "more than its size": b"1\r\nabcdef\r\n0\r\n\r\n",
    "a size in 0x": b"0x2\r\nab\r\n0\r\n\r\n",
    "lines that end in LF alone": b"2\nab\n0\n\n",
    "a size behind a blank": b" 2\r\nab\r\n0\r\n\r\n",
}


@pytest.fixture(scope="module")
def api(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(database_url, tmp_path_factory.mktemp("data")) as running:
        yield running


def _head(api: Api, *lines: str, host: str = "Host: x\r\n", end: str = "\r\n") -> bytes:
    given = [f"POST {ENTITIES} HTTP/1.1", f"Authorization: Bearer {api.tokens[Role.USER]}"]
    given += ["Content-Type: application/json", *lines]
    return (end.join(given) + end + host + end).encode("latin-1")


def _counted(reason: str | None = None) -> float:
    reasons = [reason] if reason else ["malformed", "head_too_large", "too_slow", "request_too_large"]
    found = (REGISTRY.get_sample_value("waybill_invalid_requests_total", {"reason": one}) for one in reasons)
    return sum(one or 0 for one in found)


def _is_refused(received: bytes) -> None:
    """One refusal at most, and nothing after it."""
    statuses = re.findall(rb"HTTP/1\.1 (\d+) ", received)
    assert statuses in ([], [b"400"]), received
    assert b"alive" not in received


@pytest.mark.parametrize("name", HEADS)
def test_ambiguous_head_is_refused_and_counted(api: Api, name: str) -> None:
    before = _counted()
    _is_refused(api.raw(_head(api, *HEADS[name]) + b"hello" + SMUGGLED))
    assert _counted() == before + 1


def test_head_in_bare_lf_is_refused_and_counted(api: Api) -> None:
    before = _counted()
    _is_refused(api.raw(_head(api, "Content-Length: 5", host="Host: x\n", end="\n") + b"hello" + SMUGGLED))
    assert _counted() == before + 1


@pytest.mark.parametrize("name", CHUNKS)
def test_ambiguous_chunks_are_refused_and_counted(api: Api, name: str) -> None:
    before = _counted()
    _is_refused(api.raw(_head(api, CHUNKED) + CHUNKS[name] + SMUGGLED))
    assert _counted() == before + 1


def test_request_without_a_host_is_refused_and_counted(api: Api) -> None:
    before = _counted()
    _is_refused(api.raw(b"GET /health/live HTTP/1.1\r\n\r\n"))
    assert _counted() == before + 1
    assert b"200 OK" in api.raw(b"GET /health/live HTTP/1.0\r\n\r\n")


def test_trailers_are_not_taken_for_headers(api: Api) -> None:
    body = b'c\r\n{"name":"a"}\r\n0\r\n'
    trailers = b"Idempotency-Key: smuggled\r\nWaybill-Priority: nonsense\r\nX-Request-ID: smuggled-1\r\n\r\n"
    received = api.raw(_head(api, CHUNKED, "Connection: close") + body + trailers)
    assert received.startswith(b"HTTP/1.1 202 "), received
    assert b"smuggled" not in received


@pytest.mark.parametrize(
    ("beginning", "endless"),
    [
        (b"", b"1;" + b"x" * 60_000 + b"\r\na\r\n"),
        (b"0\r\n", b"".join(b"X-%d: y\r\n" % n for n in range(9_000))),
    ],
    ids=["extensions", "trailers"],
)
def test_chunks_that_carry_no_body_come_to_an_end(
    api: Api, monkeypatch: pytest.MonkeyPatch, beginning: bytes, endless: bytes
) -> None:
    monkeypatch.setattr("api_shim.web.protocol.MAX_REQUEST_BYTES", 1_000_000)
    before = _counted("request_too_large")
    with socket.create_connection(("127.0.0.1", api.port), timeout=10) as connection:
        connection.sendall(_head(api, CHUNKED) + beginning)
        sent = 0
        try:
            while sent < 20_000_000:
                connection.sendall(endless)
                sent += len(endless)
        except OSError:
            pass
    assert sent < 20_000_000
    assert _counted("request_too_large") == before + 1


@pytest.mark.parametrize("name", ["slow header", "slow body"])
def test_drop_by_drop_is_closed_and_counted(api: Api, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("api_shim.web.protocol.MAX_REQUEST_SECONDS", 1.0)
    before = _counted("too_slow")
    head = _head(api, "Content-Length: 5000")
    with socket.create_connection(("127.0.0.1", api.port), timeout=10) as connection:
        connection.sendall(head if name == "slow body" else head[:-4])
        until = time.monotonic() + 10
        try:
            while time.monotonic() < until:
                connection.sendall(b"x")
                time.sleep(0.05)
        except OSError:
            pass
    assert time.monotonic() < until
    assert _counted("too_slow") == before + 1
