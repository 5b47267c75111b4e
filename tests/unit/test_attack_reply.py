"""The judge of the attack list: each way in which an answer can be wrong is seen."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from tests.attack.reply import CLOSED, MalformedReply, Reply, read

_PROBLEM = {
    "type": "urn:waybill:problem:Validation",
    "title": "The request is not valid",
    "status": 400,
    "error": "Validation",
    "message": "no",
    "requestId": "abcdefgh",
}
_HEADERS = {
    "content-type": "application/problem+json",
    "x-request-id": "abcdefgh",
    "x-content-type-options": "nosniff",
}


def _reply(sent: int = 400, headers: Mapping[str, str] = _HEADERS, **changes: Any) -> Reply:
    """A refusal, with changes to its document (None leaves a member out)."""
    document = {name: value for name, value in {**_PROBLEM, **changes}.items() if value is not None}
    return Reply(sent, headers, json.dumps(document).encode())


def test_correct_refusal_has_no_fault() -> None:
    assert list(_reply().faults()) == []
    assert list(CLOSED.faults()) == []


@pytest.mark.parametrize(
    ("reply", "fault"),
    [
        (_reply(500, status=500, error="Internal"), "status 500"),
        (_reply(headers={**_HEADERS, "x-content-type-options": ""}), "X-Content-Type-Options"),
        (_reply(headers={**_HEADERS, "x-request-id": "a b"}), "X-Request-ID"),
        (_reply(headers={**_HEADERS, "content-type": "text/html"}), "of type"),
        (_reply(message=None), "without message"),
        (_reply(error="Oops"), "'Oops'"),
        (_reply(error="Conflict"), "'Conflict'"),
        (_reply(status=401), "status 401"),
        (_reply(requestId="hgfedcba"), "requestId"),
        (_reply(401, status=401, error="Unauthorized"), "without www-authenticate"),
        (_reply(405, status=405, error="MethodNotAllowed"), "without allow"),
        (_reply(429, status=429, error="RateLimit"), "without retry-after"),
        (_reply(503, status=503, error="Unavailable"), "without retry-after"),
        (_reply(412, status=412, error="PreconditionFailed"), "currentVersion"),
        (_reply(details=[{"field": "x"}]), "details"),
        (_reply(message='Traceback (most recent call last): File "/x"'), "inside"),
        (_reply(message="psycopg.errors.UniqueViolation"), "inside"),
        (_reply(message="SELECT id FROM waybill.jobs"), "inside"),
        (_reply(message="$argon2id$v=19"), "inside"),
        (Reply(400, _HEADERS, b"oops"), "no JSON"),
    ],
)
def test_each_fault_is_seen(reply: Reply, fault: str) -> None:
    assert any(fault in one for one in reply.faults()), list(reply.faults())


def test_answer_is_read_with_what_follows_it() -> None:
    reply = read(b"HTTP/1.1 200 OK\r\nX-A: b\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 204 No Content\r\n\r\n")

    assert (reply.status, reply.headers["x-a"], reply.body) == (200, "b", b"ok")
    assert reply.rest.startswith(b"HTTP/1.1 204")


@pytest.mark.parametrize(
    "received",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX: a\x00b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nok",
        b"<html>",
    ],
)
def test_broken_answer_is_no_answer(received: bytes) -> None:
    with pytest.raises(MalformedReply):
        read(received)


def test_nothing_is_a_close() -> None:
    assert read(b"").is_closed
