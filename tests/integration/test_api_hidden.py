"""What is somebody else's and hidden answers as what is not there: nobody learns which ids exist."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from models.identity.principals import Role
from models.ids import new_id
from tests.kit.api import Answer, Api, running_api

ENTITIES = "/api/v1/entities"
BODIES: dict[str, Any] = {
    "POST": {"type": "note", "value": 1},
    "PUT": {"name": "mine"},
    "PATCH": {"name": "mine"},
}


@dataclass(frozen=True)
class Ids:
    """An entity and a part of it."""

    entity: str
    part: str


@pytest.fixture(scope="module")
def api(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(database_url, Path(tmp_path_factory.mktemp("data"))) as running:
        yield running


@pytest.fixture(scope="module")
def foreign(api: Api) -> Ids:
    entity = api.create(role=Role.ADMIN)["id"]
    job = api.request("POST", f"{ENTITIES}/{entity}/related", role=Role.ADMIN, json_body=BODIES["POST"]).json
    api.apply(job["id"])
    return Ids(entity, job["resourceId"])


def unknown() -> Ids:
    return Ids(str(new_id()), str(new_id()))


def told(answer: Answer, ids: Ids) -> dict[str, Any]:
    """The problem without what belongs to the request, but for ids that its words give away."""
    problem: dict[str, Any] = answer.json
    problem.pop("requestId")
    problem.pop("instance", None)
    assert ids.entity not in answer.body.decode()
    assert ids.part not in answer.body.decode()
    return problem | {"status": answer.status}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "{entity}"),
        ("GET", "{entity}?minVersion=1"),
        ("GET", "{entity}/related"),
        ("GET", "{entity}/related/{part}"),
        ("PUT", "{entity}"),
        ("PATCH", "{entity}"),
        ("DELETE", "{entity}"),
        ("POST", "{entity}/related"),
        ("PUT", "{entity}/related/{part}"),
        ("PATCH", "{entity}/related/{part}"),
        ("DELETE", "{entity}/related/{part}"),
    ],
)
def test_hidden_and_unknown_are_refused_in_the_same_words(
    api: Api, foreign: Ids, method: str, path: str
) -> None:
    body = BODIES.get(method)
    if "part" in path and body is not None:
        body = {"type": "tag", "value": 2}
    problems = []
    for ids in (foreign, unknown(), Ids(foreign.entity, str(new_id()))):
        target = f"{ENTITIES}/{path.format(entity=ids.entity, part=ids.part)}"
        problems.append(told(api.request(method, target, json_body=body), ids))
    assert problems[0] == problems[1] == problems[2]
    assert problems[0]["status"] == 404


def test_hidden_and_unknown_are_refused_in_the_same_words_by_a_bulk(api: Api, foreign: Ids) -> None:
    problems = []
    for ids in (foreign, unknown()):
        aim = {"resource": "entities", "id": ids.entity}
        parts = {"resource": "related", "parentId": ids.entity}
        part = {"id": ids.part, **parts}
        operations = [
            {"operation": "replace", **aim, "data": BODIES["PUT"]},
            {"operation": "patch", **aim, "data": BODIES["PATCH"]},
            {"operation": "delete", **aim},
            {"operation": "create", **parts, "data": BODIES["POST"]},
            {"operation": "patch", **part, "data": BODIES["POST"]},
            {"operation": "delete", **part},
        ]
        answer = api.request("POST", "/api/v1/bulk", json_body={"operations": operations})
        assert answer.status == 202
        assert ids.entity not in answer.body.decode()
        problems.append([item["error"] | {"requestId": ""} for item in answer.json["jobs"]])
        assert [one["status"] for one in problems[-1]] == [404] * len(operations)
    assert problems[0] == problems[1]


def test_hidden_and_unknown_are_taken_in_for_later_and_refused_then_in_the_same_words(
    api: Api, foreign: Ids
) -> None:
    problems = []
    for ids in (foreign, unknown()):
        writes = [
            ("PATCH", f"{ENTITIES}/{ids.entity}", BODIES["PATCH"]),
            ("DELETE", f"{ENTITIES}/{ids.entity}", None),
            ("POST", f"{ENTITIES}/{ids.entity}/related", BODIES["POST"]),
            ("DELETE", f"{ENTITIES}/{ids.entity}/related/{ids.part}", None),
        ]
        for method, path, body in writes:
            soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
            answer = api.request(method, path, json_body=body, headers={"Waybill-Run-At": soon})
            assert answer.status == 202, answer.body
            job = answer.json["id"]
            with api.container.database.transaction() as connection:
                connection.execute(_NOW_DUE, {"id": job})
            api.apply(job)
            ended = api.request("GET", f"/api/v1/jobs/{job}").json
            assert ended["state"] == "failed"
            problems.append(ended["error"] | {"requestId": ""})
    half = len(problems) // 2
    assert problems[:half] == problems[half:]
    assert {one["status"] for one in problems} == {404}


def test_job_of_ones_own_ahead_tells_nothing_either(api: Api, foreign: Ids) -> None:
    statuses = []
    for ids in (foreign, unknown()):
        path = f"{ENTITIES}/{ids.entity}"
        past = {"Waybill-Run-At": "2020-01-01T00:00:00Z"}
        first = api.request("PATCH", path, json_body=BODIES["PATCH"], headers=past)
        second = api.request("PATCH", path, json_body=BODIES["PATCH"])
        statuses.append((first.status, second.status))
        api.apply(first.json["id"], second.json["id"])
        third = api.request("PATCH", path, json_body=BODIES["PATCH"])
        statuses[-1] += (third.status,)
    assert statuses == [(202, 202, 404)] * 2


_NOW_DUE = text("UPDATE jobs SET state = 'queued', run_at = now(), announce_at = now() WHERE id = :id")
