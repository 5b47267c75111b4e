"""JSON as the contract takes it: one meaning, or Invalid."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
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


def _slow_depth(body: bytes) -> int:
    """The deepest nesting, byte by byte: the reference."""
    depth = deepest = 0
    in_string = escaped = False
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


_pieces = st.sampled_from(
    [b"[", b"{", b"]", b"}", b'"', b"\\", b'\\"', b"x", b"[" * 60, b"]" * 40, b'"[[["', b"\n"]
)


@given(st.lists(_pieces, max_size=60).map(b"".join))
@settings(max_examples=500)
def test_depth_is_what_the_slow_reference_counts(body: bytes) -> None:
    body += b"[]" * 101  # enough brackets to be counted at all
    too_deep = _slow_depth(body) > strict_json.MAX_DEPTH
    try:
        strict_json._check_depth(body)
        refused = False
    except Invalid:
        refused = True
    assert refused == too_deep
