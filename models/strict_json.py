"""JSON as the contract takes it: one meaning or a refusal. Reading only; writing is ``orjson.dumps``.

Refused with :class:`Invalid`: duplicate members, NUL, lone surrogates, numbers that are not finite,
integers beyond 64 bits, nesting beyond 100, a byte-order mark, anything but UTF-8.
"""

import json
import re
from typing import Any, NoReturn

import orjson

from models.errors import Invalid

MAX_DEPTH = 100
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
_SUSPICIOUS_ESCAPE = re.compile(rb"\\u(?:0000|003[aA]|[dD][89a-fA-F])")

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_STEPS = bytes.maketrans(b"[{]}", b"\x02\x02\x00\x00")


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
    """Whether the fast parser's reading is the only one: few members, no odd escape, no long number."""
    if _SUSPICIOUS_ESCAPE.search(body):
        return False
    colons, found = body.count(b":"), 0
    stack = [value]
    while stack:
        item = stack.pop()
        if type(item) is dict:
            found += len(item)
            for key, child in item.items():
                if type(key) is str and ":" in key:
                    found += key.count(":")
                stack.append(child)
        elif type(item) is list:
            stack.extend(item)
        elif type(item) is str:
            if ":" in item:
                found += item.count(":")
        elif type(item) is float:
            if item in (float("inf"), float("-inf")) or abs(item) >= 9e15:
                return False
        elif type(item) is int and not _INT64_MIN <= item <= _INT64_MAX:
            return False
    return found == colons


def _check_depth(body: bytes) -> None:
    """Refuse deep nesting before any parser recurses into it.

    Strings are cut out first, then everything that is no bracket: what is left is counted.
    """
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    brackets = _STRING.sub(b"", body).translate(_STEPS, _NO_BRACKETS)
    depth = 0
    for step in brackets:
        depth += step - 1
        if depth > MAX_DEPTH:
            raise Invalid(f"The body is nested deeper than {MAX_DEPTH}")


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
            if any("\ud800" <= character <= "\udfff" for character in item):
                raise Invalid("A string holds a lone surrogate")
