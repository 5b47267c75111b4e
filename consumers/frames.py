"""AMQP frames: a message whose properties cannot be read is still delivered, marked as such.

py-amqp reads properties while it takes a frame in and raises where one is not UTF-8, is a time beyond
year 9999, or nests too deep. The connection would end, the broker would deliver the message again,
and one message would stop the intake for ever. So it would where py-amqp could still read what nobody after
it can: headers are read down to :data:`MAX_DEPTH`.
"""

from collections.abc import Callable, Iterable, Mapping
from struct import pack, unpack_from
from typing import Any

from amqp.basic_message import Message
from amqp.method_framing import frame_handler
from amqp.serialization import decode_properties_basic, dumps, loads

UNREADABLE = "x-waybill-unreadable"
"""Header of a message with unreadable properties: their names."""

MAX_DEPTH = 32
"""Tables and arrays within each other in the headers."""

_SURELY_READ_BYTES = 512
"""Too short to nest by more than about a hundred, which anybody can read."""

_CONTENT_HEADER = 2
_PROPERTIES_AT = 12
_Frame = tuple[int, int, bytes]


def tolerant_frame_handler(connection: Any, callback: Callable[..., Any]) -> Callable[[_Frame], bool]:
    """py-amqp's frame handler, with unreadable properties replaced by what can be read of them."""
    handle: Callable[[_Frame], bool] = frame_handler(connection, callback)

    def on_frame(frame: _Frame) -> bool:
        kind, channel, payload = frame
        if kind == _CONTENT_HEADER and len(payload) > _SURELY_READ_BYTES and not _is_readable(payload):
            return handle((kind, channel, readable(payload)))
        try:
            return handle(frame)
        except Exception:
            if kind != _CONTENT_HEADER or _is_readable(payload):
                raise
            return handle((kind, channel, readable(payload)))

    return on_frame


def readable(payload: bytes) -> bytes:
    """A content header frame's payload with only what can be read, and :data:`UNREADABLE` set."""
    (flags,) = unpack_from(">H", payload, _PROPERTIES_AT)
    offset = _PROPERTIES_AT + 2
    values: dict[str, Any] = {}
    unreadable: list[str] = []
    for position, (name, kind) in enumerate(Message.PROPERTIES):
        if not flags & (0x8000 >> position):
            continue
        size = _size(kind, payload, offset)
        raw = payload[offset : offset + size]
        offset += size
        try:
            value = loads(kind, raw, 0)[0][0]
            _check_depth(value)
            values[name] = value
        except Exception:
            unreadable.append(name)
            if kind == "s":
                values[name] = raw[1:].decode("utf-8", "replace").replace("\ufffd", "?")
    values["application_headers"] = {
        **values.get("application_headers", {}),
        UNREADABLE: ", ".join(unreadable),
    }
    return payload[:_PROPERTIES_AT] + _written(values)


def _size(kind: str, payload: bytes, offset: int) -> int:
    if kind == "s":
        return 1 + payload[offset]
    if kind == "F":
        length: int = unpack_from(">I", payload, offset)[0]
        return 4 + length
    return {"o": 1, "L": 8}[kind]


def _written(values: dict[str, Any]) -> bytes:
    flags, formats, present = 0, "", []
    for position, (name, kind) in enumerate(Message.PROPERTIES):
        if name in values:
            flags |= 0x8000 >> position
            formats += kind
            present.append(values[name])
    written: bytes = dumps(formats, tuple(present))
    return pack(">H", flags) + written


def _is_readable(payload: bytes) -> bool:
    try:
        properties, _ = decode_properties_basic(payload, _PROPERTIES_AT)
        _check_depth(properties.get("application_headers"))
    except Exception:
        return False
    return True


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [item for one in level for item in _items(one)]
        if not level:
            return
    raise ValueError(f"more than {MAX_DEPTH} tables or arrays within each other")


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else ()
