"""JSON as the contract takes it: one meaning or a refusal. Reading only; writing is ``orjson.dumps``.

Refused with :class:`Invalid`: duplicate members, NUL, lone surrogates, numbers that are not finite,
integers beyond 64 bits, nesting beyond 100, a byte-order mark, anything but UTF-8.
"""

import json
import re
from array import array
from itertools import accumulate
from typing import Any, NoReturn

import orjson

from models.errors import Invalid

MAX_DEPTH = 100
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
_SUSPICIOUS_ESCAPE = re.compile(rb"\\u00(?:00|3[aA])")
"""NUL, and the colon, which members are counted by. Lone surrogates the fast parser refuses itself."""


def _no_constant(name: str) -> NoReturn:
    raise Invalid(f"The number {name} is not finite")


def _bounded_int(text: str) -> int:
    if len(text) > 20:
        raise Invalid("An integer is beyond 64 bits")
    number = int(text)
    if not _INT64_MIN <= number <= _INT64_MAX:
        raise Invalid("An integer is beyond 64 bits")
    return number


def _finite_float(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise Invalid("A number is not finite")
    return number


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Invalid("A JSON object has a member twice")
    return members


_decoder = json.JSONDecoder(
    parse_constant=_no_constant,
    parse_int=_bounded_int,
    parse_float=_finite_float,
    object_pairs_hook=_unique_members,
)


def parse(body: bytes) -> Any:
    """Read one JSON text.

    Plain documents take the fast parser; only those it cannot vouch for (it merges duplicate
    members silently and turns big integers into floats) are read again, slowly and strictly.

    Args:
        body: UTF-8 bytes.

    Returns:
        dict, list, str, int, float, bool or None.

    Raises:
        Invalid: The text is malformed or breaks a rule above; the message says which.
    """
    _check_depth(body)
    try:
        fast = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        fast = None
        if body[:3] == b"\xef\xbb\xbf":
            raise Invalid("The body begins with a byte-order mark") from error
    else:
        if _is_vouched_for(body, fast):
            return fast
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Invalid("The body is not UTF-8") from error
    try:
        strict = _decoder.decode(text)
    except json.JSONDecodeError as error:
        raise Invalid(f"The body is not JSON: {error.msg} at character {error.pos}") from error
    except RecursionError as error:  # pragma: no cover - the depth check comes first
        raise Invalid(f"The body is nested deeper than {MAX_DEPTH}") from error
    _check_strings(strict)
    return strict


def _is_vouched_for(body: bytes, value: Any) -> bool:
    """Whether the fast parser's reading is the only one: no member twice, no odd escape, no long integer.

    Written out again, the value has as many colons as the body, unless members were merged: the fast
    parser keeps each colon inside a string, and escaped ones are not vouched for.
    """
    if b"\\u" in body and _SUSPICIOUS_ESCAPE.search(body):
        return False
    if body.count(b":") != orjson.dumps(value).count(b":"):
        return False
    numbers = body.translate(_DIGITS)
    # Fewer digits than these fit into 64 bits; after a point they make no number longer.
    if numbers.startswith(_LONG_DIGITS) or b" " + _LONG_DIGITS in numbers:
        return _has_short_numbers(value)
    return True


_DIGITS = bytes(0x30 if 0x30 <= byte <= 0x39 else 0x2E if byte == 0x2E else 0x20 for byte in range(256))
"""Every digit becomes a zero, every point stays, all else becomes a space."""
_LONG_DIGITS = b"0" * 16


def _has_short_numbers(value: Any) -> bool:
    """Whether every number of ``value`` is what the text said; long digits may also be a string's."""
    stack = [value]
    while stack:
        item = stack.pop()
        if type(item) is dict:
            stack.extend(child for child in item.values() if type(child) is not str)
        elif type(item) is list:
            stack.extend(child for child in item if type(child) is not str)
        elif type(item) is float:
            if abs(item) >= 9e15:  # may have been an integer beyond 64 bits
                return False
        elif type(item) is int and not _INT64_MIN <= item <= _INT64_MAX:
            return False
    return True


def _check_depth(body: bytes) -> None:
    """Refuse deep nesting before any parser recurses into it.

    Nearly all of it is done by ``bytes`` itself: 8 MiB take milliseconds. What is no JSON may be
    miscounted; the parser refuses it then.
    """
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    if b"\\" in body:  # escapes stand in strings only, so pairs are told from the left
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Two quotes side by side change nothing about what is inside a string and what is not.
    marks = body.translate(_NESTING, _NOT_NESTING).replace(b'""', b"")
    steps = b"".join(marks.split(b'"')[::2])
    depth = 0
    for start in range(0, len(steps), _STEPS_AT_ONCE):
        part = array("b", steps[start : start + _STEPS_AT_ONCE])
        if depth + len(part) > MAX_DEPTH and depth + max(accumulate(part)) > MAX_DEPTH:
            raise Invalid(f"The body is nested deeper than {MAX_DEPTH}")
        depth += sum(part)


_NESTING = bytes({0x5B: 1, 0x7B: 1, 0x5D: 255, 0x7D: 255}.get(byte, byte) for byte in range(256))
"""Brackets become steps, +1 and -1 as signed bytes."""
_NOT_NESTING = bytes(sorted(set(range(256)) - set(b'[]{}"')))
_STEPS_AT_ONCE = 16_384
"""Other threads get their turn in between."""


def _check_strings(value: Any) -> None:
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            stack.extend(item.keys())
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
        elif isinstance(item, str):
            if "\x00" in item:
                raise Invalid("A string holds the NUL character")
            try:
                item.encode()
            except UnicodeEncodeError as error:
                raise Invalid("A string holds a lone surrogate") from error
