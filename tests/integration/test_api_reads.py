"""Reads over HTTP: one, lists, ETags, minVersion, visibility."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.postgres_server import PostgresServer
from models.identity.principals import Role
from models.ids import new_id
from tests.kit.api import Api, now, running_api
from tests.kit.servers import fresh_database

ENTITIES = "/api/v1/entities"


@pytest.fixture(scope="module", params=["without a cache", "with a cache"])
def api(
    request: pytest.FixtureRequest, postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Api]:
    url = request.getfixturevalue("redis_server").url if request.param == "with a cache" else ""
    data_dir: Path = tmp_path_factory.mktemp("data")
    with fresh_database(postgres) as database_url, running_api(database_url, data_dir, redis_url=url) as api:
        yield api


def _names(api: Api, query: str, role: Role = Role.USER) -> list[str]:
    answer = api.request("GET", f"{ENTITIES}?{query}", role=role)
    assert answer.status == 200, answer.body
    return [item["name"] for item in answer.json["items"]]


def test_one_comes_with_its_version_as_etag(api: Api) -> None:
    entity = api.create("Ada")
    answer = api.request("GET", f"{ENTITIES}/{entity['id']}")
    assert (answer.status, answer.json, answer.headers["etag"]) == (200, entity, '"1"')


@pytest.mark.parametrize(
    ("tag", "status"), [('"1"', 304), ('W/"1"', 304), ("*", 304), ('"2"', 200), ("1", 400)]
)
def test_if_none_match(api: Api, tag: str, status: int) -> None:
    entity = api.create("Ada")
    answer = api.request("GET", f"{ENTITIES}/{entity['id']}", headers={"If-None-Match": tag})
    assert answer.status == status
    if status == 304:
        assert (answer.body, answer.headers["etag"]) == (b"", '"1"')


@pytest.mark.parametrize(("role", "status"), [(Role.USER, 404), (Role.GUEST, 200), (Role.ADMIN, 200)])
def test_foreign_instance_is_seen_by_those_who_read_all(api: Api, role: Role, status: int) -> None:
    owner = Role.ADMIN if role is Role.USER else Role.USER
    entity = api.create(role=owner)
    assert api.request("GET", f"{ENTITIES}/{entity['id']}", role=role).status == status


@pytest.mark.parametrize("identifier", [str(new_id()), "x", "%00", "{018f3c1e-0000-7000-8000-000000000000}"])
def test_unknown_instance_is_404(api: Api, identifier: str) -> None:
    assert api.request("GET", f"{ENTITIES}/{identifier}").status == 404


# ---- minVersion ------------------------------------------------------------------------


def test_min_version_not_reached_is_409_with_retry_after(api: Api) -> None:
    entity = api.create()
    answer = api.request("GET", f"{ENTITIES}/{entity['id']}?minVersion=2")
    assert (answer.status, answer.json["error"], answer.headers["retry-after"]) == (409, "Conflict", "1")
    assert api.request("GET", f"{ENTITIES}/{entity['id']}?minVersion=1").status == 200


def test_min_version_of_a_creation_on_its_way_is_409_and_of_an_unknown_one_404(api: Api) -> None:
    job = api.request("POST", ENTITIES, json_body={"name": "a"}).json
    path = f"{ENTITIES}/{job['resourceId']}"
    assert api.request("GET", path).status == 404
    assert api.request("GET", path + "?minVersion=1").status == 409
    foreign = api.request("POST", ENTITIES, json_body={"name": "a"}, role=Role.ADMIN).json
    assert api.request("GET", f"{ENTITIES}/{foreign['resourceId']}?minVersion=1").status == 404
    assert api.request("GET", f"{ENTITIES}/{new_id()}?minVersion=1").status == 404
    api.apply(job["id"])
    assert api.request("GET", path + "?minVersion=1").status == 200


def test_min_version_is_waited_for(api: Api) -> None:
    entity = api.create()
    path = f"{ENTITIES}/{entity['id']}"
    with api.worker():
        assert api.request("PATCH", path, json_body={"name": "b"}).status == 202
        answer = api.request("GET", path + "?minVersion=2", headers={"Prefer": "wait=10"})
    assert (answer.status, answer.json["name"]) == (200, "b")


def test_min_version_is_waited_for_only_as_long_as_asked(api: Api) -> None:
    entity = api.create()
    began = now()
    answer = api.request("GET", f"{ENTITIES}/{entity['id']}?minVersion=2", headers={"Prefer": "wait=1"})
    assert answer.status == 409
    assert 0.9 < now() - began < 5


# ---- lists -----------------------------------------------------------------------------


@pytest.mark.parametrize("sort", ["createdAt", "-createdAt", "name", "-name"])
def test_pages_hold_everything_once_and_in_order(api: Api, sort: str) -> None:
    mark = f"page{sort}"
    for name in ("b", "a", "c", "a", "b"):
        api.create(f"{mark} {name}")
    query = f"q={mark}&sort={sort}&limit=2"
    seen: list[Any] = []
    cursor = None
    for _ in range(3):
        answer = api.request("GET", f"{ENTITIES}?{query}" + (f"&cursor={cursor}" if cursor else "")).json
        seen += answer["items"]
        cursor = answer["nextCursor"]
    assert cursor is None
    member = sort.removeprefix("-")
    expected = sorted(seen, key=lambda item: (item[member], item["id"]), reverse=sort.startswith("-"))
    assert len({item["id"] for item in seen}) == 5
    assert seen == expected


def test_users_list_their_own_and_guests_all(api: Api) -> None:
    api.create("ownership mine")
    api.create("ownership theirs", role=Role.ADMIN)
    assert _names(api, "q=ownership") == ["ownership mine"]
    assert sorted(_names(api, "q=ownership", Role.GUEST)) == ["ownership mine", "ownership theirs"]
    assert sorted(_names(api, "q=ownership", Role.ADMIN)) == ["ownership mine", "ownership theirs"]


def test_search_is_literal_and_case_insensitive_in_name_and_description(api: Api) -> None:
    api.create("100% Needle_x")
    api.create("plain", description="a NEEDLE in the hay")
    api.create("100 other")
    assert sorted(_names(api, "q=needle")) == ["100% Needle_x", "plain"]
    assert _names(api, "q=100%25") == ["100% Needle_x"]
    assert _names(api, "q=needle_") == ["100% Needle_x"]


def test_status_is_filtered(api: Api) -> None:
    api.create("status a", status="ACTIVE")
    api.create("status d")
    assert _names(api, "q=status&status=ACTIVE") == ["status a"]


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=101",
        "limit=-1",
        "limit=1.0",
        "limit=",
        "limit=%C2%B2",
        "limit=99999999999999999999999",
        "sort=version",
        "sort=",
        "sort=--name",
        "status=active",
        "status=",
        "q=",
        "q=%00",
        "q=" + "x" * 256,
        "cursor=",
        "cursor=x",
        "cursor=AAAA",
        "unknown=1",
        "limit=1&limit=2",
        "owner_id=1",
        "limit=1&",
        "%ff=1",
    ],
)
def test_query_out_of_range_unknown_or_malformed_is_400(api: Api, query: str) -> None:
    answer = api.request("GET", f"{ENTITIES}?{query}")
    assert (answer.status, answer.json["error"]) == (400, "Validation")


def test_cursor_holds_only_for_its_own_question_and_caller(api: Api) -> None:
    for _ in range(3):
        api.create("cursor")
    cursor = api.request("GET", f"{ENTITIES}?q=cursor&limit=1").json["nextCursor"]
    assert api.request("GET", f"{ENTITIES}?q=cursor&limit=2&cursor={cursor}").status == 200
    for other in ("q=curso", "q=cursor&sort=name", "q=cursor&status=DRAFT", "limit=1"):
        assert api.request("GET", f"{ENTITIES}?{other}&cursor={cursor}").status == 400
    assert api.request("GET", f"{ENTITIES}?q=cursor&cursor={cursor}", role=Role.ADMIN).status == 400
    flipped = ("B" if cursor[0] == "A" else "A") + cursor[1:]
    assert api.request("GET", f"{ENTITIES}?q=cursor&cursor={flipped}").status == 400


def test_query_on_a_route_that_takes_none_is_400(api: Api) -> None:
    assert api.request("POST", f"{ENTITIES}?dryRun=1", json_body={"name": "a"}).status == 400


def test_head_is_get_without_a_body(api: Api) -> None:
    entity = api.create()
    answer = api.request("HEAD", f"{ENTITIES}/{entity['id']}")
    assert (answer.status, answer.body, answer.headers["etag"]) == (200, b"", '"1"')
