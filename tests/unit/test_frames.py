"""Content headers that py-amqp cannot read are made readable, and lose no more than they must."""

from struct import pack
from typing import Any

import pytest
from amqp.basic_message import Message
from amqp.serialization import decode_properties_basic
from hypothesis import given
from hypothesis import strategies as st

from consumers import frames

_NAMES = [name for name, kind in Message.PROPERTIES if kind == "s"]


def header(properties: dict[str, bytes], table: bytes | None = None) -> bytes:
    """The payload of a content header frame, from raw bytes."""
    flags, written = 0, b""
    for position, (name, _) in enumerate(Message.PROPERTIES):
        if name == "application_headers" and table is not None:
            written += pack(">I", len(table)) + table
        elif name in properties:
            written += bytes([len(properties[name])]) + properties[name]
        else:
            continue
        flags |= 0x8000 >> position
    return pack(">HxxQH", 60, 7, flags) + written


def read(payload: bytes) -> dict[str, Any]:
    properties: dict[str, Any] = decode_properties_basic(payload, 12)[0]
    return properties


def test_what_is_readable_is_kept_and_the_rest_is_named() -> None:
    payload = header({"message_id": b"m-\xff", "reply_to": b"replies", "correlation_id": b"\xfe"})
    with pytest.raises(UnicodeDecodeError):
        read(payload)

    mended = frames.readable(payload)

    assert mended[:12] == payload[:12]
    assert read(mended) == {
        "message_id": "m-?",
        "reply_to": "replies",
        "correlation_id": "?",
        "application_headers": {frames.UNREADABLE: "correlation_id, message_id"},
    }


def test_headers_are_dropped_where_they_cannot_be_read() -> None:
    payload = header({"message_id": b"m"}, table=b"\x04whenT" + b"\xff" * 8)

    assert read(frames.readable(payload)) == {
        "message_id": "m",
        "application_headers": {frames.UNREADABLE: "application_headers"},
    }


def test_readable_headers_are_kept() -> None:
    payload = header({"message_id": b"\xff"}, table=b"\x01aS" + pack(">I", 1) + b"b")

    assert read(frames.readable(payload))["application_headers"] == {
        "a": "b",
        frames.UNREADABLE: "message_id",
    }


@pytest.mark.parametrize("kind", [b"F", b"A"], ids=["tables", "arrays"])
@pytest.mark.parametrize(
    "depth", [0, 1, frames.MAX_DEPTH, frames.MAX_DEPTH + 1, 300, 490, 700, *range(950, 1000, 3), 5000]
)
def test_headers_are_read_to_a_depth_that_everybody_can_read(kind: bytes, depth: int) -> None:
    table = b""
    for _ in range(depth):
        table = (b"\x01d" if kind == b"F" else b"") + kind + pack(">I", len(table)) + table
    if kind == b"A" and depth:
        table = b"\x01d" + table
    seen: list[Any] = []
    handle = frames.tolerant_frame_handler(FakeConnection(), lambda *given: seen.append(given[3]))
    handle((1, 1, pack(">HH", 60, 60)))
    handle((2, 1, header({"message_id": b"m" * 255, "reply_to": b"r" * 255}, table)))
    handle((3, 1, b"content"))

    (message,) = seen
    assert message.properties["message_id"] == "m" * 255
    headers = message.properties["application_headers"]
    assert (frames.UNREADABLE in headers) == (depth > frames.MAX_DEPTH)


class FakeConnection:
    """As much of one as py-amqp's frame handler asks for."""

    bytes_recv = 0


@given(st.dictionaries(st.sampled_from(_NAMES), st.binary(max_size=255)), st.none() | st.binary(max_size=300))
def test_any_content_header_becomes_readable(properties: dict[str, bytes], table: bytes | None) -> None:
    mended = read(frames.readable(header(properties, table)))

    assert {name for name in mended if name != "application_headers"} == set(properties)


def test_other_faults_are_not_hidden() -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug of ours")

    handle = frames.tolerant_frame_handler(FakeConnection(), broken)
    with pytest.raises(RuntimeError):
        handle((1, 1, pack(">HH", 20, 40)))
    assert handle((1, 1, pack(">HH", 60, 60))) is False
    with pytest.raises(RuntimeError):
        handle((2, 1, pack(">HxxQH", 60, 0, 0)))
