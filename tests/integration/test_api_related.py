"""Parts of a parent over HTTP: every verb of ``entities/{id}/related``, and what becomes of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.identity.principals import Role
from models.ids import new_id
from tests.kit.api import Answer, Api, running_api

WAIT = {"Prefer": "wait=10"}


@pytest.fixture(scope="module")
def api(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(database_url, Path(tmp_path_factory.mktemp("data"))) as running, running.worker():
        yield running


@pytest.fixture
def entity(api: Api) -> str:
    return made(api, "/api/v1/entities", {"name": "whole"})["id"]


def send(
    api: Api, method: str, path: str, body: Any = None, role: Role = Role.USER, **headers: str
) -> Answer:
    return api.request(method, path, role=role, json_body=body, headers=WAIT | headers)


def made(api: Api, path: str, body: Any, role: Role = Role.USER) -> Any:
    answer = send(api, "POST", path, body, role)
    assert answer.status == 201, answer.body
    return answer.json


def related(entity: str, part: str = "") -> str:
    return f"/api/v1/entities/{entity}/related" + (f"/{part}" if part else "")


def test_part_is_made_read_changed_and_deleted(api: Api, entity: str) -> None:
    answer = send(api, "POST", related(entity), {"type": "note", "value": {"a": [1, None]}})
    part = answer.json
    assert answer.status == 201
    assert answer.headers["location"] == related(entity, part["id"])
    assert "etag" not in answer.headers
    assert set(part) == {"id", "entityId", "type", "value", "order", "createdAt"}
    assert (part["entityId"], part["order"], part["value"]) == (entity, 0, {"a": [1, None]})

    read = send(api, "GET", related(entity, part["id"]))
    assert (read.status, read.json) == (200, part)
    assert "etag" not in read.headers

    patched = send(api, "PATCH", related(entity, part["id"]), {"value": {"b": 2}, "order": -3})
    assert (patched.status, patched.json["value"], patched.json["order"]) == (
        200,
        {"a": [1, None], "b": 2},
        -3,
    )
    put = send(api, "PUT", related(entity, part["id"]), {"type": "tag", "value": None})
    assert (put.status, put.json) == (200, part | {"type": "tag", "value": None, "order": 0})

    assert send(api, "DELETE", related(entity, part["id"])).status == 204
    assert send(api, "GET", related(entity, part["id"])).status == 404


def test_job_names_the_resource_and_has_no_version(api: Api, entity: str) -> None:
    job = api.request("POST", related(entity), json_body={"type": "note", "value": 1}).json
    done = api.request("GET", f"/api/v1/jobs/{job['id']}", headers={**WAIT}).json
    assert (done["resource"], done["state"]) == ("related", "succeeded")
    assert "version" not in done
    result = api.request("GET", done["resultUrl"])
    assert result.headers["location"] == related(entity, done["resourceId"])


@pytest.mark.parametrize(
    ("body", "member"),
    [
        ({"value": 1}, "type"),
        ({"type": "", "value": 1}, "type"),
        ({"type": "x" * 51, "value": 1}, "type"),
        ({"type": " ", "value": 1}, "type"),
        ({"type": "note"}, "value"),
        ({"type": "note", "value": 1, "order": 2**31}, "order"),
        ({"type": "note", "value": 1, "order": "1"}, "order"),
        ({"type": "note", "value": 1, "entityId": str(new_id())}, "entityId"),
        ({"type": "note", "value": 1, "version": 1}, "version"),
        ({"type": "note", "value": 1, "ownerId": str(new_id())}, "ownerId"),
        ({"type": "note", "value": 1, "sortOrder": 1}, "sortOrder"),
    ],
)
def test_body_that_does_not_fit_is_refused(api: Api, entity: str, body: Any, member: str) -> None:
    answer = send(api, "POST", related(entity), body)
    assert (answer.status, [one["field"] for one in answer.json["details"]]) == (400, [member])


def test_versions_cannot_be_demanded_where_there_are_none(api: Api, entity: str) -> None:
    part = made(api, related(entity), {"type": "note", "value": 1})
    place = related(entity, part["id"])
    assert send(api, "PATCH", place, {"value": 2}, **{"If-Match": '"1"'}).status == 400
    assert send(api, "GET", f"{place}?minVersion=1").status == 400


def test_client_may_choose_the_id(api: Api, entity: str) -> None:
    chosen = str(new_id())
    assert made(api, related(entity), {"id": chosen, "type": "note", "value": 1})["id"] == chosen
    again = send(api, "POST", related(entity), {"id": chosen, "type": "note", "value": 1})
    assert (again.status, again.json["error"]) == (409, "Conflict")


def test_part_of_another_parent_is_not_found(api: Api, entity: str) -> None:
    other = made(api, "/api/v1/entities", {"name": "other"})["id"]
    part = made(api, related(other), {"type": "note", "value": 1})["id"]
    for method, body in [("GET", None), ("PATCH", {"value": 2}), ("DELETE", None)]:
        answer = api.request(method, related(entity, part), json_body=body)
        assert answer.status == 404, method
    assert send(api, "GET", related(other, part)).json["value"] == 1


@pytest.mark.parametrize("parent", [str(new_id()), "no-uuid"])
def test_unknown_parent_is_not_found(api: Api, parent: str) -> None:
    assert send(api, "GET", related(parent)).status == 404
    assert send(api, "GET", related(parent, str(new_id()))).status == 404
    assert api.request("POST", related(parent), json_body={"type": "note", "value": 1}).status == 404


def test_foreign_parent_is_not_found_and_a_visible_one_is_forbidden(api: Api) -> None:
    foreign = made(api, "/api/v1/entities", {"name": "the admin's"}, Role.ADMIN)["id"]
    part = made(api, related(foreign), {"type": "note", "value": 1}, Role.ADMIN)["id"]
    body = {"type": "note", "value": 1}
    for method, path, sent in [
        ("GET", related(foreign), None),
        ("GET", related(foreign, part), None),
        ("POST", related(foreign), body),
        ("PUT", related(foreign, part), body),
        ("DELETE", related(foreign, part), None),
    ]:
        assert api.request(method, path, json_body=sent).status == 404, (method, path)
    assert send(api, "GET", related(foreign, part), role=Role.GUEST).status == 200
    assert send(api, "POST", related(foreign), body, role=Role.GUEST).status == 403
    assert send(api, "DELETE", related(foreign, part), role=Role.GUEST).status == 403


def test_what_an_admin_adds_belongs_to_the_parents_owner(api: Api, entity: str) -> None:
    part = made(api, related(entity), {"type": "note", "value": 1}, Role.ADMIN)["id"]
    assert send(api, "GET", related(entity, part)).status == 200
    assert send(api, "DELETE", related(entity, part)).status == 204


def test_list_is_sorted_searched_and_paged_within_its_parent(api: Api, entity: str) -> None:
    other = made(api, "/api/v1/entities", {"name": "other"})["id"]
    for place, order in ((entity, 2), (entity, 1), (other, 0), (entity, 3)):
        made(api, related(place), {"type": f"kind-{order}", "value": order, "order": order})

    def page(asked: str) -> Any:
        answer = send(api, "GET", f"{related(entity)}?{asked}")
        assert answer.status == 200, answer.body
        return answer.json

    assert [one["order"] for one in page("sort=createdAt")["items"]] == [2, 1, 3]
    assert [one["order"] for one in page("sort=-order")["items"]] == [3, 2, 1]
    assert [one["order"] for one in page("q=KIND-3")["items"]] == [3]
    first = page("sort=order&limit=2")
    rest = page(f"sort=order&limit=2&cursor={first['nextCursor']}")
    assert [one["order"] for one in first["items"] + rest["items"]] == [1, 2, 3]
    assert rest["nextCursor"] is None
    stolen = f"{related(other)}?sort=order&limit=2&cursor={first['nextCursor']}"
    assert send(api, "GET", stolen).status == 400
    assert send(api, "GET", f"{related(entity)}?sort=name").status == 400


def test_parts_go_with_their_parent_and_nothing_can_be_added_afterwards(api: Api, entity: str) -> None:
    part = made(api, related(entity), {"type": "note", "value": 1})["id"]
    assert send(api, "DELETE", f"/api/v1/entities/{entity}").status == 204
    assert send(api, "GET", related(entity)).status == 404
    assert send(api, "GET", related(entity, part)).status == 404
    assert send(api, "POST", related(entity), {"type": "note", "value": 1}).status == 404
    assert made(api, "/api/v1/entities", {"id": entity, "name": "again"})["version"] == 3
    assert send(api, "GET", related(entity)).json["items"] == []


def test_bulk_makes_a_parent_and_its_parts_at_once(api: Api) -> None:
    entity, part = str(new_id()), str(new_id())
    note = {"type": "note", "value": 1}
    operations = [
        {"operation": "create", "resource": "entities", "id": entity, "data": {"name": "whole"}},
        {"operation": "create", "resource": "related", "id": part, "parentId": entity, "data": note},
        {"operation": "patch", "resource": "related", "id": part, "parentId": entity, "data": {"order": 7}},
        {"operation": "create", "resource": "related", "data": note},
        {"operation": "create", "resource": "related", "parentId": str(new_id()), "data": note},
        {"operation": "create", "resource": "entities", "parentId": entity, "data": {"name": "x"}},
    ]
    jobs = send(api, "POST", "/api/v1/bulk", {"operations": operations}).json["jobs"]
    assert [one.get("state") for one in jobs[:3]] == ["succeeded"] * 3
    assert [one["error"]["status"] for one in jobs[3:]] == [400, 404, 400]
    assert send(api, "GET", related(entity, part)).json["order"] == 7


def test_idempotency_keys_tell_parents_apart(api: Api, entity: str) -> None:
    other = made(api, "/api/v1/entities", {"name": "other"})["id"]
    body, key = {"type": "note", "value": 1}, {"Idempotency-Key": str(new_id())}
    first = send(api, "POST", related(entity), body, **key)
    again = send(api, "POST", related(entity), body, **key)
    assert (again.status, again.json) == (201, first.json)
    assert send(api, "POST", related(other), body, **key).status == 422
