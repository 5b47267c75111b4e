"""What attackers and accidents send: each gets its refusal, and the server goes on."""

import base64
import hashlib
import hmac
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from models.identity.principals import Role
from tests.kit.api import Api, running_api

ENTITIES = "/api/v1/entities"


@pytest.fixture(scope="module")
def api(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    data_dir: Path = tmp_path_factory.mktemp("data")
    with running_api(database_url, data_dir) as running:
        yield running


@pytest.fixture(autouse=True)
def _still_alive(api: Api) -> Iterator[None]:
    yield
    assert api.request("GET", "/health/live", role=None).status == 200


def _is_problem(answer: Any, status: int, error: str) -> None:
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json
    assert (document["status"], document["error"]) == (status, error)
    assert document["requestId"] == answer.headers["x-request-id"]
    assert {"type", "title", "message"} <= set(document)
    assert "Traceback" not in str(document)


# ---- bodies ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b'{"name":"a","name":"b"}',
        b'{"name":"a","metadata":{"x":1,"x":2}}',
        b'{"name":"a","metadata":{"x":NaN}}',
        b'{"name":"a","metadata":{"x":-Infinity}}',
        b'{"name":"a","metadata":{"x":1e999}}',
        b'{"name":"a\\u0000"}',
        b'{"name":"a","metadata":{"k\\u0000":1}}',
        b'{"name":"\\ud800"}',
        b'{"name":"a","metadata":{"x":9223372036854775808}}',
        b'{"name":"a","metadata":{"x":' + b"9" * 5000 + b"}}",
        b'{"name":"a","metadata":' + b'{"a":' * 101 + b"1" + b"}" * 102,
        b'{"name":"a","metadata":{"a":' + b"[" * 50_000,
        b'\xef\xbb\xbf{"name":"a"}',
        '{"name":"a"}'.encode("utf-16"),
        b'{"name":"\xff"}',
        b'{"name":"a"} x',
        b"{'name':'a'}",
        b'{"name":"a",}',
        b'{"name":""}',
        b'{"name":"   "}',
        b'{"name":"a\\nb"}',
        b'{"name":5}',
        b'{"name":null}',
        b'{"description":"x"}',
        b'{"name":"' + b"x" * 256 + b'"}',
        b'{"name":"a","status":"ARCHIVED"}',
        b'{"name":"a","status":"draft"}',
        b'{"name":"a","metadata":[]}',
        b'{"name":"a","version":1}',
        b'{"name":"a","ownerId":"018f3c1e-0000-7000-8000-000000000000"}',
        b'{"name":"a","owner_id":"018f3c1e-0000-7000-8000-000000000000"}',
        b'{"name":"a","createdAt":"2030-01-01T00:00:00Z"}',
        b'{"name":"a","unknown":1}',
        b'{"name":"a","id":"x"}',
        b'{"name":"a","id":5}',
    ],
)
def test_malformed_document_is_400(api: Api, body: bytes) -> None:
    _is_problem(api.request("POST", ENTITIES, body=body), 400, "Validation")


def test_refused_member_is_named(api: Api) -> None:
    answer = api.request("POST", ENTITIES, json_body={"name": "a", "status": "x", "bogus": 1})
    assert {detail["field"] for detail in answer.json["details"]} == {"status", "bogus"}


@pytest.mark.parametrize(
    "body",
    [b'{"name":null}', b'{"version":2}', b'{"status":"x"}', b'{"id":"x"}', b"[]", b'{"name":"a","name":"b"}'],
)
def test_malformed_patch_is_400(api: Api, body: bytes) -> None:
    entity = api.create()
    _is_problem(api.request("PATCH", f"{ENTITIES}/{entity['id']}", body=body), 400, "Validation")


def test_delete_with_a_body_is_400(api: Api) -> None:
    entity = api.create()
    _is_problem(api.request("DELETE", f"{ENTITIES}/{entity['id']}", body=b"{}"), 400, "Validation")


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/xml"},
        {"Content-Type": "application/merge-patch+json"},
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Type": ""},
        {"Content-Encoding": "gzip"},
        {"Content-Encoding": "br, gzip"},
    ],
)
def test_wrong_media_type_or_encoding_is_415(api: Api, headers: dict[str, str]) -> None:
    answer = api.request("POST", ENTITIES, body=b'{"name":"a"}', headers=headers)
    _is_problem(answer, 415, "UnsupportedMediaType")


def test_body_at_the_limit_is_taken_and_one_byte_more_is_413(api: Api) -> None:
    body = b'{"name":"a","metadata":{"x":"' + b"y" * (256 * 1024 - 32) + b'"}}'
    body += b" " * (256 * 1024 - len(body))
    assert api.request("POST", ENTITIES, body=body).status == 202
    _is_problem(api.request("POST", ENTITIES, body=body + b" "), 413, "PayloadTooLarge")


def _head(api: Api, *lines: str, method: str = "POST", path: str = ENTITIES) -> bytes:
    given = [
        f"{method} {path} HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {api.tokens[Role.USER]}",
        "Content-Type: application/json",
        *lines,
    ]
    return ("\r\n".join(given) + "\r\n\r\n").encode("latin-1")


def test_oversized_length_is_413_before_the_body_comes(api: Api) -> None:
    received = api.raw(_head(api, "Content-Length: 99999999"))
    assert received.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in received.lower()


def test_oversized_chunked_body_is_413(api: Api) -> None:
    chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    received = api.raw(_head(api, "Transfer-Encoding: chunked") + chunk * 10)
    assert received.startswith(b"HTTP/1.1 413 ")


def test_chunked_body_is_taken(api: Api) -> None:
    received = api.raw(
        _head(api, "Transfer-Encoding: chunked", "Connection: close") + b'c\r\n{"name":"a"}\r\n0\r\n\r\n'
    )
    assert received.startswith(b"HTTP/1.1 202 ")


# ---- HTTP itself -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: 5", "Content-Length: 6"),
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Content-Length: -1",),
        ("Content-Length: 1e3",),
        ("Content-Length: ",),
        ("Bad Header: x",),
        ("X: a\x00b",),
    ],
)
def test_broken_http_is_refused_and_closed(api: Api, lines: tuple[str, ...]) -> None:
    received = api.raw(_head(api, *lines) + b'{"name":"a"}')
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in received


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02\x00", b"GARBAGE\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"])
def test_what_is_no_http_is_refused_and_closed(api: Api, data: bytes) -> None:
    received = api.raw(data)
    assert received == b"" or received.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "head",
    [
        lambda: b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 40_000 + b"\r\n\r\n",
        lambda: b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000,
        lambda: b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        lambda: (
            b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(5000)) + b"\r\n"
        ),
    ],
)
def test_oversized_head_is_refused_and_closed(api: Api, head: Callable[[], bytes]) -> None:
    assert api.raw(head()).startswith(b"HTTP/1.1 400 ")


def test_pipelined_requests_are_answered_in_order(api: Api) -> None:
    first = _head(api, method="GET", path="/health/live")
    second = _head(api, "Connection: close", method="GET", path="/nope")
    received = api.raw(first + second)
    assert received.index(b"200 OK") < received.index(b"404 Not Found")


@pytest.mark.parametrize(
    "path", ["/", "/api", "/api/v1", "/api/v1/nothing", "/api/v1/entities/", "//", "/%2e%2e/x"]
)
def test_unknown_route_is_404(api: Api, path: str) -> None:
    _is_problem(api.request("GET", path), 404, "NotFound")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("DELETE", ENTITIES, "GET, HEAD, POST"),
        ("POST", f"{ENTITIES}/x", "DELETE, GET, HEAD, PATCH, PUT"),
        ("OPTIONS", ENTITIES, "GET, HEAD, POST"),
        ("GET", "/auth/login", "POST"),
        ("POST", "/health/live", "GET, HEAD"),
        ("TRACE", "/api/v1/jobs", "GET, HEAD"),
    ],
)
def test_wrong_method_is_405_and_says_which_are_right(api: Api, method: str, path: str, allow: str) -> None:
    answer = api.request(method, path)
    _is_problem(answer, 405, "MethodNotAllowed")
    assert answer.headers["allow"] == allow


# ---- request ids -----------------------------------------------------------------------


@pytest.mark.parametrize("given", ["abcdefgh", "A.b_c-9-" * 16])
def test_request_id_is_echoed(api: Api, given: str) -> None:
    assert api.request("GET", "/nope", headers={"X-Request-ID": given}).headers["x-request-id"] == given


@pytest.mark.parametrize(
    "given", ["short", "x" * 129, "has space", 'quote"12345', "line\\n12345", "<script>1", "ääääääää"]
)
def test_malformed_request_id_is_replaced(api: Api, given: str) -> None:
    headers = {"X-Request-ID": given.encode().decode("latin-1")}
    answered = api.request("GET", "/nope", headers=headers).headers["x-request-id"]
    assert len(answered) == 36
    assert given not in answered


# ---- tokens ----------------------------------------------------------------------------


def _encoded(part: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


def _claims(api: Api, **changes: Any) -> dict[str, Any]:
    claims = jwt.decode(api.tokens[Role.ADMIN], options={"verify_signature": False})
    changed = {**claims, **changes}
    return {name: value for name, value in changed.items() if value is not None}


def _signed(api: Api, kid: str | None = None, **changes: Any) -> str:
    key = api.container.tokens._signer
    return jwt.encode(_claims(api, **changes), key.key, algorithm="EdDSA", headers={"kid": kid or key.key_id})


def _tampered(api: Api) -> str:
    header, _, signature = api.tokens[Role.USER].split(".")
    return f"{header}.{_encoded(_claims(api))}.{signature}"


def _with_alg_none(api: Api) -> str:
    kid = api.container.tokens._signer.key_id
    return f"{_encoded({'alg': 'none', 'kid': kid})}.{_encoded(_claims(api))}."


def _hmac_with_the_public_key(api: Api) -> str:
    """The classic confusion: the published key taken for a shared secret."""
    published = api.container.tokens.public_jwk_set()["keys"][0]
    head = f"{_encoded({'alg': 'HS256', 'kid': published['kid']})}.{_encoded(_claims(api))}"
    secret = base64.urlsafe_b64decode(published["x"] + "=")
    signature = hmac.new(secret, head.encode(), hashlib.sha256).digest()
    return f"{head}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def _other_key(api: Api) -> str:
    kid = api.container.tokens._signer.key_id
    return jwt.encode(_claims(api), Ed25519PrivateKey.generate(), algorithm="EdDSA", headers={"kid": kid})


HOSTILE: dict[str, Callable[[Api], str]] = {
    "tampered": _tampered,
    "alg none": _with_alg_none,
    "HMAC with the public key": _hmac_with_the_public_key,
    "another key": _other_key,
    "unknown kid": lambda api: _signed(api, kid="unknown"),
    "kid that is a path": lambda api: _signed(api, kid="../../etc/passwd"),
    "expired": lambda api: _signed(api, exp=int(time.time()) - 60),
    "not yet": lambda api: _signed(api, nbf=int(time.time()) + 600),
    "issued in the future": lambda api: _signed(api, iat=int(time.time()) + 600),
    "foreign issuer": lambda api: _signed(api, iss="other"),
    "foreign audience": lambda api: _signed(api, aud="other"),
    "no expiry": lambda api: _signed(api, exp=None),
    "no subject": lambda api: _signed(api, sub=None),
    "no id": lambda api: _signed(api, jti=None),
    "refresh token": lambda api: _signed(api, typ="refresh"),
    "unknown role": lambda api: _signed(api, role="root"),
    "subject that is no id": lambda api: _signed(api, sub="1"),
    "too long": lambda api: _signed(api, email="x" * 5000),
    "empty": lambda api: "",
    "one part": lambda api: "abc",
    "dots": lambda api: "..",
    "binary": lambda api: "ÿþ",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_token_is_401(api: Api, name: str) -> None:
    answer = api.request("GET", ENTITIES, token=HOSTILE[name](api))
    _is_problem(answer, 401, "Unauthorized")
    assert answer.headers["www-authenticate"] == 'Bearer realm="waybill", error="invalid_token"'


def test_genuine_token_of_this_kind_passes(api: Api) -> None:
    assert api.request("GET", ENTITIES, token=_signed(api)).status == 200


@pytest.mark.parametrize("value", ["Basic dXNlcjpwYXNz", "Bearer", "Token x", "bearerx"])
def test_other_schemes_are_401(api: Api, value: str) -> None:
    _is_problem(
        api.request("GET", ENTITIES, role=None, headers={"Authorization": value}), 401, "Unauthorized"
    )


def test_scheme_is_case_insensitive(api: Api) -> None:
    headers = {"Authorization": f"bEaReR {api.tokens[Role.USER]}"}
    assert api.request("GET", ENTITIES, role=None, headers=headers).status == 200


def test_no_token_is_401_everywhere_but_on_public_routes(api: Api) -> None:
    for route in api.edge.app.router:
        path = route.path.replace("{id}", "018f3c1e-0000-7000-8000-000000000000")
        answer = api.request(route.method, path, role=None)
        if route.is_public:
            assert answer.status != 401, path
        else:
            _is_problem(answer, 401, "Unauthorized")
            assert answer.headers["www-authenticate"] == 'Bearer realm="waybill"'


def test_remembered_token_expires(api: Api) -> None:
    token = _signed(api, exp=int(time.time()))  # within the leeway of a first check, never remembered
    assert api.request("GET", ENTITIES, token=token).status == 200
    time.sleep(6)
    assert api.request("GET", ENTITIES, token=token).status == 401


@pytest.mark.parametrize(
    "beginning", [b"", b"GET /health/li", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nab"]
)
def test_client_that_dawdles_is_closed(api: Api, monkeypatch: pytest.MonkeyPatch, beginning: bytes) -> None:
    monkeypatch.setattr("api_shim.web.protocol.MAX_REQUEST_SECONDS", 0.5)
    with socket.create_connection(("127.0.0.1", api.port), timeout=10) as connection:
        connection.sendall(beginning)
        while connection.recv(4096):
            pass


def test_two_tokens_are_refused_also_where_one_is_remembered(api: Api) -> None:
    token = f"Bearer {api.tokens[Role.USER]}"
    assert api.request("GET", ENTITIES).status == 200
    lines = (f"Authorization: {token}", "Connection: close")
    received = api.raw(_head(api, *lines, method="GET"))
    assert received.startswith(b"HTTP/1.1 400 ")
