"""POST /bulk: one transaction, an answer for each operation in its place."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from models.identity.principals import Role
from models.ids import new_id
from tests.kit.api import Answer, Api, running_api

BULK, ENTITIES = "/api/v1/bulk", "/api/v1/entities"


@pytest.fixture(scope="module")
def api(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    data_dir: Path = tmp_path_factory.mktemp("data")
    with running_api(database_url, data_dir) as running:
        yield running


def _create(name: str = "Ada", **members: Any) -> dict[str, Any]:
    return {"operation": "create", "resource": "entities", "data": {"name": name}, **members}


def _bulk(api: Api, *operations: Any, role: Role = Role.USER, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return api.request("POST", BULK, role=role, json_body={"operations": operations}, headers=named)


def _count(api: Api) -> int:
    with api.container.database.snapshot() as connection:
        return int(connection.execute(text("SELECT count(*) FROM jobs")).scalar_one())


def test_thousand_operations_are_one_transaction(api: Api) -> None:
    answer = _bulk(api, *(_create(f"n{number}") for number in range(1000)))

    assert answer.status == 202, answer.body[:500]
    ids = [job["id"] for job in answer.json["jobs"]]
    assert len(set(ids)) == 1000
    with api.container.database.snapshot() as connection:
        query = text(
            "SELECT count(DISTINCT xmin::text), count(*) FROM jobs WHERE id = ANY(CAST(:ids AS uuid[]))"
        )
        assert tuple(connection.execute(query, {"ids": ids}).one()) == (1, 1000)
    announced = [str(one) for _, one in api.announcer.announced]
    assert set(ids) <= set(announced)


def test_every_operation_does_its_work_in_order(api: Api) -> None:
    entity = str(new_id())
    aim = {"resource": "entities", "id": entity}
    answer = _bulk(
        api,
        {"operation": "create", "resource": "entities", "id": entity, "data": {"name": "one"}},
        {"operation": "patch", **aim, "data": {"description": "two"}},
        {"operation": "replace", **aim, "data": {"name": "three", "status": "ACTIVE"}, "ifMatch": 2},
        {"operation": "patch", **aim, "ifMatch": 1, "data": {"name": "stale"}},
        {"operation": "delete", **aim},
    )
    jobs = [job["id"] for job in answer.json["jobs"]]
    api.apply(*jobs)
    polled = [api.request("GET", f"/api/v1/jobs/{job}").json for job in jobs]

    assert [job["state"] for job in polled] == ["succeeded"] * 3 + ["failed", "succeeded"]
    assert polled[3]["error"]["status"] == 412
    assert polled[2]["result"]["name"] == "three"
    assert api.request("GET", f"{ENTITIES}/{entity}").status == 404


def test_refused_operation_refuses_only_itself(api: Api) -> None:
    foreign = api.create(role=Role.ADMIN)
    before = _count(api)
    answer = _bulk(
        api,
        _create(),
        {"operation": "create", "resource": "entities", "data": {"name": ""}},
        {"operation": "patch", "resource": "entities", "id": foreign["id"], "data": {"name": "x"}},
        {"operation": "delete", "resource": "entities", "id": str(new_id())},
        {"operation": "create", "resource": "nothing", "data": {}},
        {"operation": "read", "resource": "entities", "id": foreign["id"]},
        "nonsense",
        _create(bogus=1),
        _create("last"),
    )

    places = answer.json["jobs"]
    assert answer.status == 202
    assert [one.get("index") for one in places] == [None, 1, 2, 3, 4, 5, 6, 7, None]
    assert [one["error"]["status"] for one in places if "error" in one] == [400, 404, 404, 404, 400, 400, 400]
    assert places[1]["error"]["details"][0]["field"] == "name"
    assert places[1]["error"]["requestId"] == answer.headers["x-request-id"]
    assert _count(api) == before + 2


def test_guest_is_refused_item_by_item(api: Api) -> None:
    assert [one["error"]["status"] for one in _bulk(api, _create(), role=Role.GUEST).json["jobs"]] == [403]


def test_headers_hold_for_every_operation(api: Api) -> None:
    answer = _bulk(api, _create(), _create(), Waybill_Priority="high", Waybill_Run_At="2040-01-01T00:00:00Z")

    assert {job["priority"] for job in answer.json["jobs"]} == {"high"}
    assert {job["state"] for job in answer.json["jobs"]} == {"scheduled"}
    assert {job["runAt"] for job in answer.json["jobs"]} == {"2040-01-01T00:00:00Z"}


def test_same_key_is_the_same_jobs_and_another_request_is_422(api: Api) -> None:
    first = _bulk(api, _create("a"), _create("b"), Idempotency_Key="bulk-1")
    again = _bulk(api, _create("a"), _create("b"), Idempotency_Key="bulk-1")
    other = _bulk(api, _create("a"), _create("c"), Idempotency_Key="bulk-1")

    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert [one["id"] for one in again.json["jobs"]] == [one["id"] for one in first.json["jobs"]]
    assert other.json["jobs"][0]["id"] == first.json["jobs"][0]["id"]
    assert other.json["jobs"][1]["error"]["status"] == 422


def test_operations_have_keys_of_their_own(api: Api) -> None:
    twin = _create(idempotencyKey="mine")
    first, second = _bulk(api, twin, twin).json["jobs"]

    assert first["id"] == second["id"]
    assert _bulk(api, _create("other", idempotencyKey="mine")).json["jobs"][0]["error"]["status"] == 422


def test_twenty_at_once_under_one_key_are_one_set_of_jobs(api: Api) -> None:
    answers: list[Answer] = []
    threads = [
        threading.Thread(
            target=lambda: answers.append(_bulk(api, _create("x"), _create("y"), Idempotency_Key="race"))
        )
        for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {answer.status for answer in answers} == {202}
    assert len({json.dumps([job["id"] for job in answer.json["jobs"]]) for answer in answers}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1


def test_waits_for_all_of_them_where_asked(api: Api) -> None:
    with api.worker():
        answer = _bulk(api, *(_create(f"w{number}") for number in range(20)), Prefer="wait=20")

    assert (answer.status, answer.headers["preference-applied"]) == (202, "wait=20")
    assert {job["state"] for job in answer.json["jobs"]} == {"succeeded"}


@pytest.mark.parametrize("headers", [{"If-Match": '"1"'}, {"Idempotency-Key": "k" * 241}])
def test_header_that_cannot_hold_for_all_is_400(api: Api, headers: dict[str, str]) -> None:
    answer = api.request("POST", BULK, json_body={"operations": [_create()]}, headers=headers)

    assert (answer.status, answer.json["error"]) == (400, "Validation")


def test_large_bulk_holds_up_nobody(api: Api) -> None:
    wide = {"m": [{"a": ["x" * 50] * 10}] * 14}
    operations = [
        {**_create(f"big{number}"), "data": {"name": "big", "metadata": wide}} for number in range(1000)
    ]
    body = json.dumps({"operations": operations})
    assert len(body) > 7 * 1024 * 1024
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(api.request("POST", BULK, body=body)))
    lives, slowest = 0, 0.0
    thread.start()
    while thread.is_alive():
        began = time.monotonic()
        api.request("GET", "/health/live", role=None)
        slowest = max(slowest, time.monotonic() - began)
        lives += 1
    assert answers[0].status == 202
    assert all("id" in one for one in answers[0].json["jobs"])
    assert slowest < 8
    assert lives > 100  # a thousand, about; a few where the bulk stops the event loop
