"""Reading requests: headers, queries, media types, bodies."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_shim.web.http import JSON, Disconnected, Request, parse_query
from models.errors import Invalid, PayloadTooLarge, UnsupportedMediaType

LIMIT = 10


def _request(headers: Sequence[tuple[bytes, bytes]] = (), messages: Sequence[Any] = ()) -> Request:
    waiting = list(messages)

    async def receive() -> Any:
        return waiting.pop(0)

    scope = {"method": "POST", "raw_path": b"/x", "query_string": b"", "headers": list(headers)}
    return Request(scope, receive)


def _part(body: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


@pytest.mark.parametrize(
    "messages",
    [
        [_part(b"0123456789")],
        [_part(b"01234", True), _part(b"56789")],
        [_part(b"", True), _part(b"0123456789")],
    ],
)
def test_body_at_the_limit_is_read_whole(messages: list[Any]) -> None:
    assert asyncio.run(_request(messages=messages).body(LIMIT)) == b"0123456789"


@pytest.mark.parametrize(
    ("headers", "messages"),
    [
        ([(b"content-length", b"11")], []),
        ([], [_part(b"0123456789a")]),
        ([], [_part(b"01234", True), _part(b"56789a")]),
        ([], [_part(b"01234", True), _part(b"56789a", True)]),
    ],
)
def test_body_over_the_limit_is_413_and_not_read_on(headers: list[Any], messages: list[Any]) -> None:
    with pytest.raises(PayloadTooLarge):
        asyncio.run(_request(headers, messages).body(LIMIT))


@pytest.mark.parametrize("messages", [[], [_part(b"0", True)]])
def test_client_that_left_is_not_answered(messages: list[Any]) -> None:
    with pytest.raises(Disconnected):
        asyncio.run(_request(messages=[*messages, {"type": "http.disconnect"}]).body(LIMIT))


@pytest.mark.parametrize(
    "given_type",
    [b"application/json", b"application/json; charset=utf-8", b'Application/JSON;charset="UTF-8"'],
)
def test_json_in_utf_8_is_taken(given_type: bytes) -> None:
    _request([(b"content-type", given_type), (b"content-encoding", b"identity")]).check_media_type(JSON)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"content-type", b"")],
        [(b"content-type", b"text/plain")],
        [(b"content-type", b"application/json; charset=utf-16")],
        [(b"content-type", b"application/json"), (b"content-encoding", b"gzip")],
        [(b"content-type", b"application/jsonx")],
    ],
)
def test_other_media_types_are_415(headers: list[Any]) -> None:
    with pytest.raises(UnsupportedMediaType):
        _request(headers).check_media_type(JSON)


def test_single_header_given_twice_is_400() -> None:
    request = _request([(b"if-match", b'"1"'), (b"if-match", b'"2"')])
    with pytest.raises(Invalid):
        request.header(b"if-match")


def test_list_header_given_twice_is_joined() -> None:
    request = _request([(b"prefer", b"respond-async"), (b"prefer", b"wait=3")])
    assert request.listed_header(b"prefer") == "respond-async, wait=3"


def test_query_is_decoded() -> None:
    assert parse_query(b"q=a%20b+c%C3%A4&limit=", frozenset({"q", "limit"})) == {"q": "a b cä", "limit": ""}


@pytest.mark.parametrize(
    "query",
    [
        b"x=1",
        b"q=1&q=2",
        b"q=%zz",
        b"q=%",
        b"q=%ff",
        b"q=%00",
        b"q=a%0Ab",
        b"q=\xff",
        b"&",
        b"q=1&",
        b"%71=1&q=1",
    ],
)
def test_unknown_repeated_or_malformed_query_is_400(query: bytes) -> None:
    with pytest.raises(Invalid):
        parse_query(query, frozenset({"q"}))


@given(st.binary(max_size=200))
def test_any_query_is_read_or_refused(query: bytes) -> None:
    try:
        parse_query(query, frozenset({"q"}))
    except Invalid:
        return
