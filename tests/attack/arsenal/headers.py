"""Request headers: malformed, repeated, oversized, out of range; and ids that want to write into the log."""

from collections.abc import Callable, Iterator

from tests.attack.attack import Attack, http, statuses
from tests.attack.reply import Reply
from tests.attack.target import ENTITIES, Target

_ID = "018f3c1e-0000-7000-8000-000000000000"
_AT_CREATE: dict[str, str | bytes] = {
    "Idempotency-Key: ": "",
    "Idempotency-Key: 256": "k" * 256,
    "Idempotency-Key: not ASCII": "schlüssel",
    "Idempotency-Key: a tab": "a\tb",
    "Waybill-Callback: a word": "mine",
    "Waybill-Callback: unknown": _ID,
    "Waybill-Callback: a url": "http://169.254.169.254/",
    "Waybill-Run-At: a word": "tomorrow",
    "Waybill-Run-At: without a zone": "2030-01-01T00:00:00",
    "Waybill-Run-At: no such day": "2030-02-30T00:00:00Z",
    "Waybill-Run-At: year 9999 and beyond": "9999-12-31T23:59:59-23:59",
    "Waybill-Run-At: year 0": "0000-01-01T00:00:00Z",
    "Waybill-Run-At: seconds since 1970": "1893456000",
    "Waybill-Expires-At: past": "2020-01-01T00:00:00Z",
    "Waybill-Expires-At: a word": "never",
    "Waybill-Priority: a word": "urgent",
    "Waybill-Priority: in capitals": "HIGH",
    "Waybill-Priority: a number": "9",
    "Prefer: wait=31": "wait=31",
    "Prefer: wait=-1": "wait=-1",
    "Prefer: wait=1.5": "wait=1.5",
    "Prefer: wait of 5,000 digits": "wait=" + "9" * 5000,
}
_AT_WRITE: dict[str, str] = {
    "weak": 'W/"1"',
    "without quotes": "1",
    "a list": '"1", "2"',
    "negative": '"-1"',
    "a word": '"latest"',
    "huge": '"99999999999999999999999"',
    "empty": "",
    "half a quote": '"1',
}
_REPEATED = ("Idempotency-Key", "If-Match", "Waybill-Run-At", "Waybill-Priority", "Waybill-Callback")
_REQUEST_IDS: dict[str, bytes] = {
    "short": b"x",
    "long": b"x" * 129,
    "very long": b"x" * 8000,
    "a blank": b"has a blank",
    "markup": b"<script>alert(1)</script>",
    "JSON": b'x","level":"ERROR","message":"forged',
    "escaped line feed": b"abcdefgh%0d%0aX-Forged: 1",
    "format": b"%s%s%s%n%n",
    "log4j": b"${jndi:ldap://127.0.0.1/a}",
    "terminal": b"abc\x1b[2Jdefgh",
    "high bytes": b"\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8",
    "SQL": b"'; DROP TABLE jobs; --",
}


def attacks() -> Iterator[Attack]:
    """Each header at the route where it means something."""
    for name, value in _AT_CREATE.items():
        header = name.partition(":")[0]
        document = {"name": "a"}
        yield http("headers", name, "POST", ENTITIES, 400, headers={header: value}, json_body=document)
    for name, value in _AT_WRITE.items():
        headers = {"If-Match": value}
        path = f"{ENTITIES}/{{entity}}"
        yield http(
            "headers", f"If-Match: {name}", "PATCH", path, 400, headers=headers, json_body={"name": "a"}
        )
        yield http("headers", f"If-Match at DELETE: {name}", "DELETE", path, 400, headers=headers)
    for name in ("no quotes", '"half', 'W/"1" "2"'):
        headers = {"If-None-Match": name}
        yield http("headers", f"If-None-Match: {name}", "GET", f"{ENTITIES}/{{entity}}", 400, headers=headers)
    for header in _REPEATED:
        value = '"1"' if header == "If-Match" else "2030-01-01T00:00:00Z" if header.endswith("At") else "high"
        twice = [(header, value), (header, value)]
        path = f"{ENTITIES}/{{entity}}"
        yield http("headers", f"{header} twice", "PATCH", path, 400, headers=twice, json_body={"name": "a"})
    for name, request_id in _REQUEST_IDS.items():
        yield Attack("request ids", name, _with_request_id(request_id), statuses((404, 400)))


def _with_request_id(request_id: bytes) -> Callable[[Target], Reply]:
    def send(target: Target) -> Reply:
        reply = target.request("GET", "/api/v1/nothing", headers={"X-Request-ID": request_id})
        echoed = reply.headers.get("x-request-id", "").encode("latin-1")
        if request_id in echoed or len(echoed) != 36:
            raise AssertionError(f"echoed: {echoed!r}")
        return reply

    return send
