"""Bodies that are no strict JSON, of the wrong media type or too large, at every route that takes one."""

from collections.abc import Callable, Iterator

from tests.attack.attack import Attack, http, raw
from tests.attack.target import ENTITIES, Target, Who

NOT_STRICT: dict[str, bytes] = {
    "nothing": b"",
    "half an object": b"{",
    "null": b"null",
    "an array": b"[]",
    "a string": b'"x"',
    "a number": b"1",
    "duplicate members": b'{"name":"a","name":"b"}',
    "duplicate members, one escaped": b'{"name":"a","n\\u0061me":"b"}',
    "duplicate members, nested": b'{"name":"a","metadata":{"x":1,"x":2}}',
    "duplicate members in an array": b'{"name":"a","metadata":{"l":[{"x":1,"x":2}]}}',
    "NaN": b'{"name":"a","metadata":{"x":NaN}}',
    "Infinity": b'{"name":"a","metadata":{"x":[Infinity]}}',
    "-Infinity": b'{"name":"a","metadata":{"x":-Infinity}}',
    "1e999": b'{"name":"a","metadata":{"x":1e999}}',
    "-1e999 nested": b'{"name":"a","metadata":{"x":[[{"y":-1e999}]]}}',
    "NUL in a value": b'{"name":"a\\u0000"}',
    "NUL in a key": b'{"name":"a","metadata":{"k\\u0000":1}}',
    "raw NUL": b'{"name":"a\x00"}',
    "a lone high surrogate": b'{"name":"\\ud800"}',
    "a lone low surrogate in a key": b'{"name":"a","metadata":{"\\udc00":1}}',
    "surrogates in the wrong order": b'{"name":"\\udc00\\ud800"}',
    "an integer of 65 bits": b'{"name":"a","metadata":{"x":18446744073709551616}}',
    "an integer one beyond 64 bits": b'{"name":"a","metadata":{"x":9223372036854775808}}',
    "an integer of 5,000 digits": b'{"name":"a","metadata":{"x":' + b"9" * 5000 + b"}}",
    "a number of 5,000 fraction digits and e9999": b'{"name":"a","metadata":{"x":1.'
    + b"9" * 5000
    + b"e9999}}",
    "depth 101": b'{"name":"a","metadata":' + b'{"a":' * 100 + b"1" + b"}" * 101,
    "depth bomb of arrays": b'{"name":"a","metadata":{"a":' + b"[" * 100_000,
    "depth bomb of objects": b'{"a":' * 40_000,
    "a depth bomb that closes": b'{"name":"a","metadata":{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}}",
    "a byte order mark": b'\xef\xbb\xbf{"name":"a"}',
    "UTF-16": '{"name":"a"}'.encode("utf-16"),
    "UTF-16 without a mark": '{"name":"a"}'.encode("utf-16-le"),
    "UTF-32": '{"name":"a"}'.encode("utf-32"),
    "a byte that is no UTF-8": b'{"name":"\xff"}',
    "overlong UTF-8": b'{"name":"\xc0\xaf"}',
    "UTF-8 of a surrogate": b'{"name":"\xed\xa0\x80"}',
    "two documents": b'{"name":"a"}{"name":"b"}',
    "something after the document": b'{"name":"a"} x',
    "single quotes": b"{'name':'a'}",
    "a trailing comma": b'{"name":"a",}',
    "a comment": b'{"name":"a"/* x */}',
    "a raw control character": b'{"name":"a\nb"}',
    "a leading zero": b'{"name":"a","metadata":{"x":01}}',
    "a plus sign": b'{"name":"a","metadata":{"x":+1}}',
    "hexadecimal": b'{"name":"a","metadata":{"x":0x10}}',
    "a bad escape": b'{"name":"\\x41"}',
    "form data": b"name=a&status=DRAFT",
    "XML with an entity": b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><name>&a;</name>',
    "YAML": b"name: a\n",
    "a pickle": b"\x80\x04\x95\x1f\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
}
"""By what they are; none is a strict JSON object."""

DOORS: dict[str, tuple[str, str, Who | None]] = {
    "create": ("POST", ENTITIES, "user"),
    "replace": ("PUT", f"{ENTITIES}/{{entity}}", "user"),
    "patch": ("PATCH", f"{ENTITIES}/{{entity}}", "user"),
    "bulk": ("POST", "/api/v1/bulk", "user"),
    "related": ("POST", f"{ENTITIES}/{{entity}}/related", "user"),
    "users": ("POST", "/api/v1/users", "admin"),
    "login": ("POST", "/auth/login", None),
    "refresh": ("POST", "/auth/refresh", None),
    "endpoint": ("POST", "/api/v1/callback-endpoints", "user"),
    "redrive": ("POST", "/api/v1/jobs/{job}/redrive", "admin"),
    "redrive many": ("POST", "/api/v1/dead-letters/redrive", "admin"),
}
"""Every route that takes a body."""

_TYPES = {
    "text/plain": 415,
    "application/xml": 415,
    "application/x-www-form-urlencoded": 415,
    "multipart/form-data; boundary=x": 415,
    "application/json; charset=latin-1": 415,
    "application/json; charset=utf-16": 415,
    "application/jsonp": 415,
    "application/json, text/plain": 415,
    "json": 415,
    "": 415,
    "*/*": 415,
}
_SMALLEST_LIMIT = 8 * 1024
_LIMIT = 256 * 1024
_BULK_LIMIT = 8 * 1024 * 1024


def attacks() -> Iterator[Attack]:
    """Each body at each door, each wrong type, each size."""
    for door, (method, path, who) in DOORS.items():
        for name, body in NOT_STRICT.items():
            refused = 400 if len(body) < _SMALLEST_LIMIT else (400, 413)  # some doors take less than others
            yield http("strict JSON", f"{door}: {name}", method, path, refused, who=who, body=body)
        for media_type, expected in _TYPES.items():
            headers = {"Content-Type": media_type}
            name = f"{door}: {media_type or 'no type'}"
            yield http("media types", name, method, path, expected, who=who, headers=headers, body=b"{}")
        for encoding in ("gzip", "br", "deflate", "gzip, gzip", "zstd"):
            headers = {"Content-Encoding": encoding}
            name = f"{door}: {encoding}"
            yield http("compressed", name, method, path, 415, who=who, headers=headers, body=b"\x1f\x8b\x08")
    patch = {"Content-Type": "application/merge-patch+json"}
    yield http("media types", "create: a merge patch", "POST", ENTITIES, 415, headers=patch, body=b"{}")
    yield http("sizes", "body of the limit and one", "POST", ENTITIES, 413, body=_padded(_LIMIT + 1))
    yield http(
        "sizes", "bulk of the limit and one", "POST", "/api/v1/bulk", 413, body=_padded(_BULK_LIMIT + 1)
    )
    for door, (_, path, _) in {"create": DOORS["create"], "bulk": DOORS["bulk"]}.items():
        yield raw("sizes", f"{door}: a length of 10 GB, no body", _announced(path), 413)
        yield raw("sizes", f"{door}: chunks without an end", _endless(path), 413)
    yield http("sizes", "login with a long body", "POST", "/auth/login", 413, who=None, body=_padded(70_000))
    for method in ("GET", "DELETE"):
        yield http("sizes", f"{method} with a body", method, f"{ENTITIES}/{{entity}}", (200, 400), body=b"{}")


def _padded(size: int) -> bytes:
    body = b'{"name":"a"}'
    return body + b" " * (size - len(body))


def _announced(path: str) -> Callable[[Target], bytes]:
    def data(target: Target) -> bytes:
        return target.head("POST", path, "Content-Type: application/json", "Content-Length: 9999999999")

    return data


def _endless(path: str) -> Callable[[Target], bytes]:
    def data(target: Target) -> bytes:
        head = target.head("POST", path, "Content-Type: application/json", "Transfer-Encoding: chunked")
        size = 0x40000
        return head + (b"%x\r\n" % size + b"x" * size + b"\r\n") * 36

    return data
