"""What browsers and caches are told: no page may call unless named, nothing is kept unless said so."""

from collections.abc import Iterator

import pytest

from models.identity.principals import Role
from tests.kit.api import Answer, Api, running_api

ENTITIES = "/api/v1/entities"
PAGE = "https://app.example.com"
FOREIGN = ["https://evil.example.com", "http://app.example.com", "https://app.example.com:8443", "null", "*"]


@pytest.fixture(scope="module")
def closed(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(database_url, tmp_path_factory.mktemp("data")) as running:
        yield running


@pytest.fixture(scope="module")
def api(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    origins = f"{PAGE},http://localhost:5173"
    with running_api(database_url, tmp_path_factory.mktemp("data"), cors_origins=origins) as running:
        yield running


def _preflight(api: Api, origin: str, path: str = ENTITIES, method: str = "POST") -> Answer:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    return api.request("OPTIONS", path, role=None, headers=headers)


def _allowances(answer: Answer) -> list[str]:
    return [name for name in answer.headers if name.startswith("access-control-")]


def test_no_page_may_call_by_default(closed: Api) -> None:
    assert _preflight(closed, PAGE).status == 405
    for answer in (_preflight(closed, PAGE), closed.request("GET", ENTITIES, headers={"Origin": PAGE})):
        assert _allowances(answer) == []


def test_named_page_may_ask_and_call(api: Api) -> None:
    asked = _preflight(api, PAGE)
    assert (asked.status, asked.body) == (204, b"")
    assert asked.headers["access-control-allow-origin"] == PAGE
    assert asked.headers["access-control-allow-methods"] == "GET, HEAD, POST"
    assert "Idempotency-Key" in asked.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in asked.headers
    called = api.request("POST", ENTITIES, json_body={"name": "a"}, headers={"Origin": PAGE})
    assert called.status == 202
    assert called.headers["access-control-allow-origin"] == PAGE
    assert "Location" in called.headers["access-control-expose-headers"]


def test_named_page_may_read_refusals(api: Api) -> None:
    for answer in (
        api.request("GET", ENTITIES, role=None, headers={"Origin": PAGE}),
        api.request("GET", "/nope", headers={"Origin": PAGE}),
        api.request("POST", ENTITIES, body=b"{", headers={"Origin": PAGE}),
    ):
        assert answer.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize("origin", FOREIGN)
def test_other_pages_may_not(api: Api, origin: str) -> None:
    asked = _preflight(api, origin)
    assert asked.status == 405
    called = api.request("GET", ENTITIES, headers={"Origin": origin})
    for answer in (asked, called):
        assert _allowances(answer) == []
        assert answer.headers["vary"] == "Origin"


def test_question_about_an_unknown_path_is_404(api: Api) -> None:
    assert _preflight(api, PAGE, path="/nope").status == 404


def test_options_without_a_question_is_405(api: Api) -> None:
    answer = api.request("OPTIONS", ENTITIES, headers={"Origin": PAGE})
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, POST")


def test_every_answer_says_whether_it_may_be_kept_and_shown(closed: Api) -> None:
    entity = closed.create()
    answers = {
        "404": closed.request("GET", "/nope"),
        "401": closed.request("GET", ENTITIES, role=None),
        "405": closed.request("DELETE", ENTITIES),
        "202": closed.request("POST", ENTITIES, json_body={"name": "a"}),
        "entity": closed.request("GET", f"{ENTITIES}/{entity['id']}"),
        "304": closed.request("GET", f"{ENTITIES}/{entity['id']}", headers={"If-None-Match": '"1"'}),
        "list": closed.request("GET", ENTITIES, role=Role.ADMIN),
        "docs": closed.request("GET", "/docs", role=None),
        "openapi": closed.request("GET", "/openapi.json", role=None),
        "metrics": closed.request("GET", "/metrics", role=None),
        "live": closed.request("GET", "/health/live", role=None),
    }
    kept = {name: answer.headers["cache-control"] for name, answer in answers.items()}
    private, public = "private, no-cache", "public, max-age=60"
    assert kept == {
        **dict.fromkeys(answers, "no-store"),
        **{"entity": private, "304": private, "list": private, "docs": public, "openapi": public},
    }
    for answer in answers.values():
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert "style-src" in answers["docs"].headers["content-security-policy"]


def test_what_is_no_http_is_answered_with_the_same_headers(closed: Api) -> None:
    received = closed.raw(b"GARBAGE\r\n\r\n").lower()
    for line in (b"cache-control: no-store", b"x-content-type-options: nosniff", b"x-frame-options: deny"):
        assert line in received
