"""Below the application: smuggling, conflicting lengths, broken chunks, oversized heads, those who dawdle."""

from collections.abc import Callable, Iterator

from tests.attack.attack import CLOSED, Attack, raw
from tests.attack.target import ENTITIES, Target

_SMUGGLED = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
_REFUSED = (400, CLOSED)

_FRAMING: dict[str, tuple[str, ...]] = {
    "two lengths": ("Content-Length: 5", "Content-Length: 6"),
    "two equal lengths in one": ("Content-Length: 5, 6",),
    "length and chunks": ("Content-Length: 5", "Transfer-Encoding: chunked"),
    "chunks and length": ("Transfer-Encoding: chunked", "Content-Length: 5"),
    "a negative length": ("Content-Length: -1",),
    "a length with a sign": ("Content-Length: +5",),
    "a length in exponent": ("Content-Length: 1e3",),
    "a length in hexadecimal": ("Content-Length: 0x5",),
    "an empty length": ("Content-Length: ",),
    "a length beyond 64 bits": ("Content-Length: 99999999999999999999999",),
    "chunked twice": ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    "chunked, then identity": ("Transfer-Encoding: chunked, identity",),
    "an unknown coding": ("Transfer-Encoding: xchunked",),
    "chunked behind a tab": ("Transfer-Encoding:\tchunked", "Content-Length: 5"),
    "gzip, chunked": ("Transfer-Encoding: gzip, chunked",),
    "blank before the colon": ("Content-Length : 5",),
    "a folded header": ("X: a\r\n b",),
    "a name with a blank": ("Bad Header: x",),
    "a name with a parenthesis": ("Bad(Header): x",),
    "NUL in a value": ("X: a\x00b",),
    "a line without a colon": ("nonsense",),
    "a bare CR in a value": ("X: a\rb",),
}
_CHUNKS: dict[str, bytes] = {
    "no hexadecimal": b"zz\r\nab\r\n0\r\n\r\n",
    "a negative size": b"-1\r\nab\r\n0\r\n\r\n",
    "a size beyond 64 bits": b"fffffffffffffffff\r\nab\r\n0\r\n\r\n",
    "more than its size": b"1\r\nabcdef\r\n0\r\n\r\n",
    "a size in 0x": b"0x2\r\nab\r\n0\r\n\r\n",
    "a size with a blank before": b" 2\r\nab\r\n0\r\n\r\n",
}
_NO_HTTP: dict[str, bytes] = {
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "garbage": b"GARBAGE\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/9.9": b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a SOCKS greeting": b"\x05\x01\x00\x00\x00\x00\x00\x00",
    "an AMQP greeting": b"AMQP\x00\x00\x09\x01\r\n\r\n",
    "a Redis command": b"*1\r\n$4\r\nPING\r\n\r\n",
    "a PostgreSQL start": b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
    "SMTP": b"EHLO x\r\nMAIL FROM:<a@b.c>\r\n\r\n",
    "a blank target": b"GET  HTTP/1.1\r\nHost: x\r\n\r\n",
    "NUL in the target": b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a target with a blank": b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
    "NULs": b"\x00" * 64,
}
_HEADS: dict[str, Callable[[], bytes]] = {
    "a header of 40 KB": lambda: b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 40_000 + b"\r\n\r\n",
    "a header of 1 MB, without an end": lambda: b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 1_000_000,
    "a target of 40 KB": lambda: b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "5,000 headers": lambda: (
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(5000)) + b"\r\n"
    ),
    "a method of 40 KB": lambda: b"A" * 40_000 + b" / HTTP/1.1\r\nHost: x\r\n\r\n",
}


def attacks() -> Iterator[Attack]:
    """Each as bytes on a connection of its own, followed by a request that must not be seen."""
    for name, lines in _FRAMING.items():
        yield raw("HTTP framing", name, _framed(lines), _REFUSED, method="POST")
    for name, chunks in _CHUNKS.items():
        yield raw("HTTP framing", f"chunk: {name}", _chunked(chunks), _REFUSED, method="POST")
    for name, data in _NO_HTTP.items():
        yield raw("no HTTP", name, data, (*_REFUSED, 404))
    for name, make in _HEADS.items():
        yield raw("large heads", name, make(), _REFUSED)
    for name, beginning in {
        "says nothing": b"",
        "stops in its head": b"GET /health/li",
        "stops in its body": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nab",
        "stops in a chunk": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nab",
    }.items():
        yield raw("dawdling", name, beginning, (CLOSED, 408, 404), is_slow=True)


def _framed(lines: tuple[str, ...]) -> Callable[[Target], bytes]:
    def data(target: Target) -> bytes:
        return target.head("POST", ENTITIES, "Content-Type: application/json", *lines) + b"hello" + _SMUGGLED

    return data


def _chunked(chunks: bytes) -> Callable[[Target], bytes]:
    def data(target: Target) -> bytes:
        lines = ("Content-Type: application/json", "Transfer-Encoding: chunked")
        return target.head("POST", ENTITIES, *lines) + chunks + _SMUGGLED

    return data
