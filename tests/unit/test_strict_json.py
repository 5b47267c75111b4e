"""JSON as the contract takes it: one meaning, or Invalid."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from models import strict_json
from models.errors import Invalid

REFUSED = {
    "nothing": b"",
    "white space": b" \n",
    "a word": b"yes",
    "two values": b"1 2",
    "trailing comma": b"[1,]",
    "single quotes": b"{'a':1}",
    "comment": b"{} // no",
    "unfinished": b'{"a":',
    "control character in a string": b'"a\nb"',
    "byte-order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "Latin-1": b'"\xe9"',
    "overlong UTF-8": b'"\xc0\xaf"',
    "surrogate in UTF-8": b'"\xed\xa0\x80"',
    "lone high surrogate": b'"\\ud800"',
    "lone low surrogate": b'"\\uDC00"',
    "lone surrogate in a member's name": b'{"\\ud800":1}',
    "swapped surrogates": b'"\\udc00\\ud800"',
    "NUL in a string": b'"\\u0000"',
    "NUL in a member's name": b'{"a\\u0000":1}',
    "NUL deep inside": b'{"a":[{"b":"x\\u0000"}]}',
    "NaN": b"NaN",
    "infinity": b'{"a":Infinity}',
    "negative infinity": b"[-Infinity]",
    "float that overflows": b"1e400",
    "negative float that overflows": b"[-1e400]",
    "integer above 64 bits": b"9223372036854775808",
    "integer above unsigned 64 bits": b"18446744073709551616",
    "integer below 64 bits": b"[-9223372036854775809]",
    "integer of 5000 digits": b"1" * 5000,
    "member twice": b'{"a":1,"a":2}',
    "member twice with the same value": b'{"a":1,"a":1}',
    "member twice, deep": b'[{"x":{"a":1,"b":2,"a":1}}]',
    "member twice, once escaped": b'{"a":1,"\\u0061":2}',
    "member twice, hidden by an escaped colon": b'{"a":1,"a":"\\u003a"}',
    "member twice, hidden by an escaped capital colon": b'{"a":1,"a":"\\u003A"}',
    "member twice, hidden by colons in a name": b'{"a:":1,"a:":2}',
    "101 lists": b"[" * 101 + b"]" * 101,
    "101 objects": b'{"a":' * 101 + b"1" + b"}" * 101,
    "a hundred thousand lists": b"[" * 100_000,
    "brackets after a string with an escaped quote": b'["\\"",' + b"[" * 101,
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED.keys())
def test_is_refused(body: bytes) -> None:
    with pytest.raises(Invalid):
        strict_json.parse(body)


TAKEN = {
    "null": (b"null", None),
    "largest integer": (b"9223372036854775807", 2**63 - 1),
    "smallest integer": (b"-9223372036854775808", -(2**63)),
    "large float": (b"1e300", 1e300),
    "float with the digits of a large integer": (b"12345678901234567890.0", 12345678901234567890.0),
    "surrogate pair": (b'"\\ud83d\\ude00"', "\U0001f600"),
    "escaped colon": (b'{"a":"\\u003a"}', {"a": ":"}),
    "colons everywhere": (b'{"a:b":"c:d:e"}', {"a:b": "c:d:e"}),
    "100 lists": (b"[" * 100 + b"]" * 100, json.loads("[" * 100 + "]" * 100)),
    "brackets in strings": (b'["' + b"[" * 200 + b'"]', ["[" * 200]),
    "many shallow lists": (b"[" + b",".join([b"[]"] * 200) + b"]", [[]] * 200),
    "white space around": (b' \t\r\n{"a" : 1} ', {"a": 1}),
    "escaped backslash before u0000": (b'"\\\\u0000"', "\\u0000"),
}


@pytest.mark.parametrize(("body", "value"), TAKEN.values(), ids=TAKEN.keys())
def test_is_taken(body: bytes, value: Any) -> None:
    assert strict_json.parse(body) == value


texts = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]))
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
documents = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=20
)


@given(document=documents, is_ascii=st.booleans())
def test_agrees_with_the_standard_library_on_ordinary_documents(document: Any, *, is_ascii: bool) -> None:
    body = json.dumps(document, ensure_ascii=is_ascii).encode()
    assert strict_json.parse(body) == document


@given(st.binary() | st.text('[]{}"\\:,u0dD8cA1e.-', max_size=60).map(str.encode))
@example(b'{"a":1,"a":"\\u003a"}')
def test_raises_nothing_but_invalid(body: bytes) -> None:
    try:
        value = strict_json.parse(body)
    except Invalid:
        return
    assert value == json.loads(body)


@given(st.dictionaries(texts, documents, min_size=1), st.data())
def test_no_spelling_hides_a_member_that_comes_twice(document: dict[str, Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(document)))
    spelled = "".join(
        f"\\u{ord(c):04x}" if data.draw(st.booleans()) and ord(c) < 0xFFFF else json.dumps(c)[1:-1]
        for c in name
    )
    twin = json.dumps(data.draw(documents)).replace(":", "\\u003a") if data.draw(st.booleans()) else '":"'
    try:
        json.loads(twin)
    except ValueError:
        twin = "1"
    body = json.dumps(document)[:-1] + f', "{spelled}": {twin}' + "}"
    with pytest.raises(Invalid):
        strict_json.parse(body.encode())


# ---- the fast reading against a slow one -----------------------------------------------


def _slow_depth(body: bytes) -> int:
    """The deepest nesting, byte by byte."""
    deepest, depth, in_string, escaped = 0, 0, False, False
    for byte in body:
        if in_string:
            in_string = escaped or byte != 0x22
            escaped = not escaped and byte == 0x5C
        elif byte == 0x22:
            in_string = True
        elif byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest


def _slow_reading(body: bytes) -> Any:
    """The value, or ValueError: the standard library with every rule checked on what it hands over."""

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for name, _ in pairs:
            text(name)
        if len(dict(pairs)) != len(pairs):
            raise ValueError("twice")
        return dict(pairs)

    def text(value: str) -> None:
        if "\x00" in value:
            raise ValueError("NUL")
        value.encode()

    def walk(value: Any) -> None:
        if isinstance(value, str):
            text(value)
        elif isinstance(value, float):
            if abs(value) == float("inf") or value != value:
                raise ValueError("not finite")
        elif isinstance(value, int):
            if not -(2**63) <= value < 2**63:
                raise ValueError("beyond 64 bits")
        elif isinstance(value, list | dict):
            for inner in value.values() if isinstance(value, dict) else value:
                walk(inner)

    if _slow_depth(body) > 100:
        raise ValueError("deep")
    value = json.loads(body.decode(), object_pairs_hook=members)
    walk(value)
    return value


pieces = st.sampled_from(
    [
        *'[]{}":,\\',
        '"a"',
        '"a":',
        '{"a":1',
        "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
        "]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]",
        *('"\\\\"', '"\\""', '"[{"', '"]\\\\\\""', '"\\u003a"', '"\\u0061"', '"\\ud83d\\ude00"', '"\\ud83d"'),
        *(
            "0",
            "-1",
            "1.5e3",
            "1e400",
            "0.12345678901234567890",
            "9223372036854775807",
            "9223372036854775808",
        ),
        *("-9223372036854775808", "18446744073709551616", "123456789012345678901234567890.5", "1e20", "null"),
    ]
)
fragments = st.lists(pieces, max_size=30).map("".join)
values = st.recursive(
    st.sampled_from(
        ['"\\\\"', '"\\""', '"[{"', '"\\u003a"', '"\\u0061"', '"\\ud800"', '"4111111111111111"', "true", '""']
    )
    | st.sampled_from(["1", "1e400", "0.12345678901234567890", "9223372036854775808", "-9223372036854775809"])
    | st.sampled_from(["12345678901234567", "18446744073709551616", "1e20", "1234567890123456789e9", "-0"]),
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda some: f"[{','.join(some)}]")
        | st.lists(st.tuples(st.sampled_from(['"a"', '"\\u0061"', '"b:"', '"["']), inner), max_size=3).map(
            lambda some: "{" + ",".join(f"{name}:{value}" for name, value in some) + "}"
        )
        | st.tuples(inner, st.integers(1, 120)).map(lambda deep: "[" * deep[1] + deep[0] + "]" * deep[1])
    ),
    max_leaves=12,
)


@given(st.one_of(fragments, values))
@example("[" * 99 + '"]\\\\"' + ',"["' + "]" * 99)
@example('[{"a":' * 51 + "1" + "}]" * 51)
def test_fast_and_slow_reading_agree(text: str) -> None:
    body = text.encode()
    try:
        expected = _slow_reading(body)
    except (ValueError, RecursionError):
        with pytest.raises(Invalid):
            strict_json.parse(body)
    else:
        assert json.dumps(strict_json.parse(body)) == json.dumps(expected)


@given(st.lists(st.sampled_from(["[", "{", "}", "]", '""', '"]"', '"\\\\"', '"\\"["', "1"]), max_size=400))
@example(["["] * 100 + ["]"] * 100 + ["["] * 100)
@example(["["] * 101)
@example(["["] * 100 + ['"\\"["'] + ["]"] * 100)
@example(["["] * 100 + ['"\\\\"', "[", '"\\\\"'])
def test_depth_is_counted_as_byte_by_byte(pieces: list[str]) -> None:
    body = "".join(pieces).encode() + b"[]" * 60
    if _slow_depth(body) > 100:
        with pytest.raises(Invalid, match="deeper"):
            strict_json._check_depth(body)
    else:
        strict_json._check_depth(body)


def test_depth_is_counted_across_the_parts_that_are_read_at_once() -> None:
    flat = b"[]" * strict_json._STEPS_AT_ONCE
    strict_json._check_depth(b"[" * 99 + flat + b"]" * 99)
    with pytest.raises(Invalid, match="deeper"):
        strict_json._check_depth(b"[" * 100 + flat + b"]" * 100)
