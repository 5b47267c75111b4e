"""What browsers need and what protects them: CORS, security headers, Cache-Control. A real server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from models.identity.principals import Role
from tests.kit.api import Api, running_api

ENTITIES, ORIGIN = "/api/v1/entities", "https://app.example.com"
PREFLIGHT = {"Origin": ORIGIN, "Access-Control-Request-Method": "PATCH"}


@pytest.fixture(scope="module")
def closed(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    data_dir: Path = tmp_path_factory.mktemp("closed")
    with running_api(database_url, data_dir) as running:
        yield running


@pytest.fixture(scope="module")
def opened(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    data_dir: Path = tmp_path_factory.mktemp("opened")
    with running_api(database_url, data_dir, cors_origins=ORIGIN) as running:
        yield running


def test_no_origin_is_let_in_by_default(closed: Api) -> None:
    asked = closed.request("OPTIONS", ENTITIES, role=None, headers=PREFLIGHT)
    read = closed.request("GET", ENTITIES, headers={"Origin": ORIGIN})

    assert asked.status == 405
    assert read.status == 200
    assert not [name for answer in (asked, read) for name in answer.headers if name.startswith("access-")]


def test_named_origin_may_ask_and_read(opened: Api) -> None:
    asked = opened.request("OPTIONS", f"{ENTITIES}/x", role=None, headers=PREFLIGHT)
    read = opened.request("GET", ENTITIES, headers={"Origin": ORIGIN})
    refused = opened.request("GET", ENTITIES, role=None, headers={"Origin": ORIGIN})

    assert (asked.status, asked.body) == (204, b"")
    assert asked.headers["access-control-allow-methods"] == "DELETE, GET, HEAD, PATCH, PUT"
    assert "idempotency-key" in asked.headers["access-control-allow-headers"]
    for answer in (asked, read, refused):
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert answer.headers["vary"] == "Origin"
    assert "retry-after" in read.headers["access-control-expose-headers"]
    assert refused.status == 401


@pytest.mark.parametrize("origin", ["https://evil.example", "null", f"{ORIGIN}.evil.example", "*"])
def test_any_other_origin_is_not_let_in(opened: Api, origin: str) -> None:
    asked = opened.request("OPTIONS", ENTITIES, role=None, headers={**PREFLIGHT, "Origin": origin})
    read = opened.request("GET", ENTITIES, headers={"Origin": origin})

    assert asked.status == 405
    assert "access-control-allow-origin" not in {**asked.headers, **read.headers}
    assert read.headers["vary"] == "Origin"


def test_question_about_nothing_is_404(opened: Api) -> None:
    assert opened.request("OPTIONS", "/nope", role=None, headers=PREFLIGHT).status == 404


@pytest.mark.parametrize(
    ("method", "path", "kept"),
    [
        ("GET", ENTITIES, "private, no-cache"),
        ("POST", ENTITIES, "no-store"),
        ("GET", "/nope", "no-store"),
        ("GET", "/health/live", "no-store"),
        ("GET", "/.well-known/jwks.json", "public, max-age=300"),
    ],
)
def test_every_answer_says_who_may_keep_it_and_protects_its_reader(
    closed: Api, method: str, path: str, kept: str
) -> None:
    body = {"name": "a"} if method == "POST" else None
    headers = closed.request(method, path, role=Role.USER, json_body=body).headers

    assert headers["cache-control"] == kept
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert "server" not in headers


def test_no_answer_may_be_run_or_framed_by_a_page(closed: Api) -> None:
    policy = closed.request("GET", ENTITIES).headers["content-security-policy"]
    assert policy == "default-src 'none'; frame-ancestors 'none'"
    assert "style-src" in closed.request("GET", "/docs", role=None).headers["content-security-policy"]


def test_what_is_no_http_is_answered_with_the_same_headers(closed: Api) -> None:
    received = closed.raw(b"GARBAGE\r\n\r\n").lower()
    for line in (b"cache-control: no-store", b"x-content-type-options: nosniff", b"x-frame-options: deny"):
        assert line in received
