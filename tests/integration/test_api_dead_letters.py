"""Dead letters over HTTP: found, grouped, foreseen, edited, redriven once; refused with nothing changed."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from models.audit import Actor
from models.identity.principals import Role
from models.ids import new_id
from tests.kit.api import Answer, Api, running_api

ENTITIES, JOBS, LETTERS = "/api/v1/entities", "/api/v1/jobs", "/api/v1/dead-letters"


@pytest.fixture(scope="module")
def module_api(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    data_dir: Path = tmp_path_factory.mktemp("data")
    with running_api(database_url, data_dir) as running:
        yield running


@pytest.fixture
def api(module_api: Api) -> Api:
    rows(module_api, "DELETE FROM audit")
    rows(module_api, "DELETE FROM jobs")
    return module_api


def rows(api: Api, query: str, **parameters: Any) -> list[Any]:
    with api.container.database.transaction() as connection:
        result = connection.execute(text(query), parameters)
        return list(result.all()) if result.returns_rows else []


def dead_creation(api: Api, name: str = "Ada", *, message: str = "it broke", **headers: str) -> Any:
    answer = api.request("POST", ENTITIES, json_body={"name": name}, headers=headers)
    assert answer.status == 202, answer.body
    api.kill(answer.json["id"], message)
    return answer.json


def dead_patch(api: Api, entity: str, patch: Any, **headers: str) -> Any:
    answer = api.request("PATCH", f"{ENTITIES}/{entity}", json_body=patch, headers=headers)
    assert answer.status == 202, answer.body
    api.kill(answer.json["id"])
    return answer.json


def redrive(api: Api, job_id: str, role: Role = Role.ADMIN, **body: Any) -> Answer:
    return api.request("POST", f"{JOBS}/{job_id}/redrive", role=role, json_body={"reason": "mended", **body})


def state_of(api: Api, job_id: str) -> str:
    state: str = rows(api, "SELECT state FROM jobs WHERE id = :id", id=job_id)[0][0]
    return state


def audit(api: Api, subject: str | None = None) -> list[Any]:
    return rows(
        api,
        "SELECT actor, action, outcome, reason, detail, error, request_id FROM audit "
        "WHERE CAST(:subject AS text) IS NULL OR subject = :subject ORDER BY at, id",
        subject=subject,
    )


# ---- looking -------------------------------------------------------------------------


def test_dead_letters_are_listed_latest_first_by_pages(api: Api) -> None:
    jobs = [dead_creation(api)["id"] for _ in range(5)]
    seen: list[str] = []
    cursor = ""
    while True:
        page = api.request("GET", f"{LETTERS}?limit=2{cursor}", role=Role.ADMIN)
        assert page.status == 200
        assert all(item["state"] == "dead" and item["group"] for item in page.json["items"])
        seen += [item["id"] for item in page.json["items"]]
        if page.json["nextCursor"] is None:
            break
        cursor = "&cursor=" + page.json["nextCursor"]
    assert seen == jobs[::-1]


def test_filters_and_groups_tell_errors_apart_and_ids_in_them_not(api: Api) -> None:
    for _ in range(3):
        dead_creation(api, message=f"row {new_id()} was locked for 17 s")
    entity = api.create()["id"]
    patched = dead_patch(api, entity, {"name": "x"})["id"]
    groups = api.request("GET", f"{LETTERS}?groupBy=error", role=Role.ADMIN).json["items"]
    assert [(one["count"], one["operation"]) for one in groups] == [(3, "create"), (1, "patch")]
    assert groups[0]["reason"] == "RuntimeError"
    first = api.request("GET", f"{LETTERS}?groupBy=error&limit=1", role=Role.ADMIN).json
    rest = api.request(
        "GET", f"{LETTERS}?groupBy=error&limit=1&cursor={first['nextCursor']}", role=Role.ADMIN
    ).json
    assert first["items"] + rest["items"] == groups
    by_group = api.request("GET", f"{LETTERS}?error={groups[0]['group']}", role=Role.ADMIN).json["items"]
    assert len(by_group) == 3
    for query in ("operation=patch", f"resourceId={entity}"):
        found = api.request("GET", f"{LETTERS}?{query}", role=Role.ADMIN).json["items"]
        assert [one["id"] for one in found] == [patched]
    for query in ("resource=nothing", "diedAfter=2099-01-01T00:00:00Z", "diedBefore=2001-01-01T00:00:00Z"):
        assert api.request("GET", f"{LETTERS}?{query}", role=Role.ADMIN).json["items"] == []


@pytest.mark.parametrize(
    "query",
    ["groupBy=colour", "operation=drop", "resourceId=1", "diedAfter=soon", "discarded=1", "limit=0",
     "error=", "cursor=x", "colour=1"],
)  # fmt: skip
def test_malformed_question_is_400(api: Api, query: str) -> None:
    assert api.request("GET", f"{LETTERS}?{query}", role=Role.ADMIN).status == 400


@pytest.mark.parametrize("role", [Role.USER, Role.GUEST])
def test_dead_letters_are_for_admins(api: Api, role: Role) -> None:
    job = dead_creation(api)["id"]
    assert api.request("GET", LETTERS, role=role).status == 403
    many = {"reason": "x", "ids": [job]}
    assert api.request("POST", f"{LETTERS}/redrive", role=role, json_body=many).status == 403
    assert redrive(api, job, role).status == (403 if role is Role.USER else 404)
    assert state_of(api, job) == "dead"
    assert {row.outcome for row in audit(api)} == {"refused"}


# ---- redriving one -------------------------------------------------------------------


def test_dead_letter_is_foreseen_edited_and_applied_once_as_a_new_generation(api: Api) -> None:
    job = dead_creation(api, "Ada")
    foreseen = redrive(api, job["id"], dryRun=True, patch={"name": "Grace"})
    assert foreseen.status == 200
    assert (foreseen.json["outcome"], foreseen.json["generation"]) == ("succeeded", 2)
    assert (foreseen.json["data"], foreseen.json["version"]) == ({"name": "Grace"}, 1)
    assert foreseen.json["result"]["name"] == "Grace"
    assert state_of(api, job["id"]) == "dead"
    assert api.request("GET", f"{ENTITIES}/{job['resourceId']}").status == 404

    api.announcer.announced.clear()
    answer = redrive(api, job["id"], patch={"name": "Grace"})
    assert answer.status == 202
    assert answer.headers["location"] == f"{JOBS}/{job['id']}"
    assert (answer.json["state"], answer.json["generation"], answer.json["attempt"]) == ("queued", 2, 0)
    assert [str(one) for _, one in api.announcer.announced] == [job["id"]]
    api.apply(job["id"])
    api.apply(job["id"])
    done = api.request("GET", f"{JOBS}/{job['id']}").json
    assert (done["state"], done["generation"], done["result"]["name"]) == ("succeeded", 2, "Grace")
    assert [one["generation"] for one in done["attempts"]] == [1]
    assert api.request("GET", f"{ENTITIES}/{job['resourceId']}").json["version"] == 1
    assert redrive(api, job["id"]).status == 409
    assert [(row.action, row.outcome, row.reason, row.actor) for row in audit(api, job["id"])] == [
        ("redrive", "foreseen", "mended", "admin@example.com"),
        ("redrive", "done", "mended", "admin@example.com"),
        ("redrive", "refused", "mended", "admin@example.com"),
    ]
    assert audit(api, job["id"])[1].detail == {
        "dryRun": False, "patch": {"name": "Grace"}, "generation": 2
    }  # fmt: skip


def test_redrives_that_race_give_one_generation_and_one_effect(api: Api) -> None:
    entity = api.create()["id"]
    job = dead_patch(api, entity, {"name": "once"})
    with ThreadPoolExecutor(8) as threads, api.worker():
        statuses = list(threads.map(lambda _: redrive(api, job["id"]).status, range(8)))
    api.apply(job["id"])
    assert sorted(statuses) == [202] + [409] * 7
    assert api.request("GET", f"{ENTITIES}/{entity}").json["version"] == 2
    assert rows(api, "SELECT generation FROM jobs WHERE id = :id", id=job["id"]) == [(2,)]
    assert sorted(row.outcome for row in audit(api, job["id"])) == ["done"] + ["refused"] * 7


def test_redriven_job_joins_the_end_of_its_lane_and_says_that_it_waits(api: Api) -> None:
    entity = api.create()["id"]
    job = dead_patch(api, entity, {"name": "late"})
    other = api.request("PATCH", f"{ENTITIES}/{entity}", json_body={"name": "early"}).json
    assert redrive(api, job["id"], dryRun=True).json["waits"] is True
    assert redrive(api, job["id"]).status == 202
    api.apply(job["id"])
    assert api.request("GET", f"{JOBS}/{other['id']}").json["version"] == 2
    assert api.request("GET", f"{ENTITIES}/{entity}").json["name"] == "late"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"reason": ""}, 400),
        ({"reason": "   "}, 400),
        ({"reason": "a\u0007b"}, 400),
        ({"reason": 7}, 400),
        ({"reason": "x" * 1001}, 400),
        ({"reason": "x", "patch": [1]}, 400),
        ({"reason": "x", "patch": "name"}, 400),
        ({"reason": "x", "dryRun": "yes"}, 400),
        ({"reason": "x", "colour": 1}, 400),
        ({"reason": "x", "patch": {"name": 7}}, 400),
        ({"reason": "x", "patch": {"name": None}}, 400),
        ({"reason": "x", "patch": {"name": ""}}, 400),
        ({"reason": "x", "patch": {"colour": "red"}}, 400),
        ({"reason": "x", "patch": {"version": 9}}, 400),
        ({"reason": "x", "patch": {"id": str(new_id())}}, 400),
        ({"reason": "x", "patch": {"description": "x" * 300_000}}, 413),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_impossible_redrive_is_refused_and_audited_with_nothing_changed(
    api: Api, body: dict[str, Any], status: int, *, dry_run: bool
) -> None:
    job = dead_creation(api)
    before = rows(api, "SELECT row_to_json(j)::text FROM jobs AS j WHERE id = :id", id=job["id"])
    answer = api.request(
        "POST",
        f"{JOBS}/{job['id']}/redrive",
        role=Role.ADMIN,
        json_body={"dryRun": dry_run, **body},
    )
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
    after = rows(api, "SELECT row_to_json(j)::text FROM jobs AS j WHERE id = :id", id=job["id"])
    assert after == before
    (row,) = audit(api, job["id"])
    assert (row.outcome, row.error["status"]) == ("refused", status)
    assert row.request_id == answer.headers["x-request-id"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"reason": "a", "reason": "b"}', b"\xff"])
def test_malformed_body_is_400_and_audited(api: Api, body: bytes) -> None:
    job = dead_creation(api)
    answer = api.request("POST", f"{JOBS}/{job['id']}/redrive", role=Role.ADMIN, body=body)
    assert answer.status == 400
    assert [row.outcome for row in audit(api, job["id"])] == ["refused"]
    typed = api.request(
        "POST",
        f"{JOBS}/{job['id']}/redrive",
        role=Role.ADMIN,
        body=b"{}",
        headers={"Content-Type": "text/plain"},
    )
    assert typed.status == 415


@pytest.mark.parametrize("path", [str(new_id()), "no-id", "%00", "a%0Ab"])
def test_unknown_job_is_404_and_audited(api: Api, path: str) -> None:
    assert redrive(api, path).status == 404
    assert [(row.outcome, row.error["status"]) for row in audit(api)] == [("refused", 404)]


def test_job_that_is_not_dead_cannot_be_redriven(api: Api) -> None:
    job = api.request("POST", ENTITIES, json_body={"name": "alive"}).json
    answer = redrive(api, job["id"])
    assert (answer.status, state_of(api, job["id"])) == (409, "queued")


def test_version_that_has_passed_is_foreseen_and_refused_with_the_present_one(api: Api) -> None:
    entity = api.create()["id"]
    job = dead_patch(api, entity, {"name": "stale"}, **{"If-Match": '"1"'})
    moved = api.request("PATCH", f"{ENTITIES}/{entity}", json_body={"name": "moved"}).json
    api.apply(moved["id"])
    foreseen = redrive(api, job["id"], dryRun=True)
    assert (foreseen.status, foreseen.json["outcome"]) == (200, "failed")
    assert foreseen.json["error"]["currentVersion"] == 2
    answer = redrive(api, job["id"])
    assert (answer.status, answer.json["currentVersion"]) == (412, 2)
    assert state_of(api, job["id"]) == "dead"


def test_instance_that_is_gone_is_foreseen_and_refused(api: Api) -> None:
    entity = api.create()["id"]
    job = dead_patch(api, entity, {"name": "gone"})
    removed = api.request("DELETE", f"{ENTITIES}/{entity}").json
    api.apply(removed["id"])
    assert redrive(api, job["id"], dryRun=True).json["outcome"] == "failed"
    assert redrive(api, job["id"]).status == 404


def test_deletion_has_no_data_to_patch_and_is_redriven_as_it_is(api: Api) -> None:
    entity = api.create()["id"]
    job = api.request("DELETE", f"{ENTITIES}/{entity}").json
    api.kill(job["id"])
    assert redrive(api, job["id"], patch={"name": "x"}).status == 400
    assert redrive(api, job["id"], dryRun=True).json["outcome"] == "succeeded"
    assert api.request("GET", f"{ENTITIES}/{entity}").status == 200
    assert redrive(api, job["id"]).status == 202
    api.apply(job["id"])
    assert api.request("GET", f"{ENTITIES}/{entity}").status == 404


def test_job_past_its_expiry_is_not_redriven(api: Api) -> None:
    job = dead_creation(api)
    rows(api, "UPDATE jobs SET expires_at = now() WHERE id = :id", id=job["id"])
    assert redrive(api, job["id"]).status == 410
    assert state_of(api, job["id"]) == "dead"


def test_killer_is_not_tried_out_in_the_api(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    job = api.request("POST", ENTITIES, json_body={"name": "lethal"}).json
    api.kill(job["id"], evidence=[{"worker": "w", "at": "t", "signal": "SIGKILL"}])
    service = api.container.registry["entities"].service
    monkeypatch.setattr(service, "check", lambda *_: pytest.fail("its rules were run"))
    foreseen = redrive(api, job["id"], dryRun=True)
    assert (foreseen.status, foreseen.json["outcome"]) == (200, "unknown")
    assert redrive(api, job["id"]).status == 202


def test_rule_that_still_breaks_is_foreseen_as_dead(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    job = dead_creation(api)

    def broken(*_: Any) -> None:
        raise RuntimeError("with a secret")

    monkeypatch.setattr(api.container.registry["entities"].service, "check", broken)
    foreseen = redrive(api, job["id"], dryRun=True)
    assert (foreseen.json["outcome"], foreseen.json["reason"]) == ("dead", "RuntimeError")
    assert b"secret" not in foreseen.body


# ---- many ----------------------------------------------------------------------------


def redrive_many(api: Api, **body: Any) -> Answer:
    return api.request("POST", f"{LETTERS}/redrive", role=Role.ADMIN, json_body={"reason": "all", **body})


def test_many_are_redriven_each_answered_in_its_place(api: Api) -> None:
    good = [dead_creation(api)["id"] for _ in range(3)]
    alive = api.request("POST", ENTITIES, json_body={"name": "alive"}).json["id"]
    unknown = str(new_id())
    foreseen = redrive_many(api, ids=[*good, alive, unknown], dryRun=True)
    assert foreseen.status == 200
    assert [one.get("outcome") for one in foreseen.json["jobs"]] == ["succeeded"] * 3 + [None] * 2
    answer = redrive_many(api, ids=[good[0], alive, good[1], unknown, good[2]])
    assert answer.status == 202
    places = answer.json["jobs"]
    assert [one["id"] for one in places[::2]] == good
    assert [(places[i]["index"], places[i]["error"]["status"]) for i in (1, 3)] == [(1, 409), (3, 404)]
    api.apply(*good)
    assert [state_of(api, one) for one in (*good, alive)] == ["succeeded"] * 3 + ["queued"]


@pytest.fixture
def curse(api: Api) -> Iterator[str]:
    """A name that a rule of the database's own breaks at: no refusal, and no fault that passes."""
    rows(
        api,
        "CREATE FUNCTION refuse_cursed() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'with a secret'; END $$",
    )
    rows(
        api,
        "CREATE TRIGGER refuse_cursed BEFORE INSERT ON entities FOR EACH ROW "
        "WHEN (NEW.name = 'cursed') EXECUTE FUNCTION refuse_cursed()",
    )
    yield "cursed"
    rows(api, "DROP FUNCTION refuse_cursed CASCADE")


def test_letter_that_the_database_breaks_at_is_foreseen_as_dead_and_keeps_no_other_back(
    api: Api, curse: str
) -> None:
    jobs = [dead_creation(api, name)["id"] for name in ("Ada", curse, "Grace")]
    foreseen = redrive(api, jobs[1], dryRun=True)
    assert (foreseen.status, foreseen.json["outcome"]) == (200, "dead")
    assert foreseen.json["reason"] == "RaiseException"
    assert b"secret" not in foreseen.body
    answer = redrive_many(api, ids=jobs)
    assert (answer.status, [one["id"] for one in answer.json["jobs"]]) == (202, jobs)
    api.apply(jobs[0], jobs[2])
    assert [state_of(api, one) for one in jobs] == ["succeeded", "queued", "succeeded"]
    api.kill(jobs[1])
    assert redrive(api, jobs[1]).status == 202


def test_group_is_redriven_in_the_order_of_its_lanes(api: Api) -> None:
    entity = api.create()["id"]
    jobs = [dead_patch(api, entity, {"metadata": {f"n{n}": n}})["id"] for n in range(4)]
    dead_creation(api, message="something else")
    groups = api.request("GET", f"{LETTERS}?groupBy=error&operation=patch", role=Role.ADMIN).json["items"]
    answer = redrive_many(api, filter={"error": groups[0]["group"], "resource": "entities"})
    assert (answer.status, answer.json["remaining"]) == (202, 0)
    assert [one["id"] for one in answer.json["jobs"]] == jobs
    api.apply(*jobs)
    versions = [api.request("GET", f"{JOBS}/{one}").json["version"] for one in jobs]
    assert versions == [2, 3, 4, 5]
    assert len(api.request("GET", LETTERS, role=Role.ADMIN).json["items"]) == 1


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"ids": []},
        {"ids": ["x"]},
        {"ids": [str(UUID(int=1))] * 2},
        {"ids": [str(UUID(int=1))], "filter": {}},
        {"filter": {"colour": 1}},
        {"filter": {"error": "not a group"}},
        {"ids": [str(UUID(int=n)) for n in range(1001)]},
        {"ids": [str(UUID(int=1))], "reason": ""},
    ],
    ids=lambda value: str(value)[:40],
)
def test_malformed_order_for_many_is_400_and_audited(api: Api, body: dict[str, Any]) -> None:
    assert redrive_many(api, **body).status == 400
    assert [row.outcome for row in audit(api, "dead-letters")] == ["refused"]


def test_discarded_letter_is_listed_apart_and_never_redriven(api: Api) -> None:
    job = dead_creation(api)
    assert api.container.redriver.discard([UUID(job["id"])], "old", Actor(None, "ada")) == [UUID(job["id"])]
    assert api.request("GET", LETTERS, role=Role.ADMIN).json["items"] == []
    (letter,) = api.request("GET", f"{LETTERS}?discarded=true", role=Role.ADMIN).json["items"]
    assert letter["discardedAt"] is not None
    assert redrive(api, job["id"]).status == 409
    assert api.container.redriver.discard([UUID(job["id"])], "old", Actor(None, "ada")) == []
    assert [(row.action, row.outcome) for row in audit(api, job["id"])] == [
        ("discard", "done"),
        ("redrive", "refused"),
        ("discard", "refused"),
    ]


def test_secret_in_a_patch_is_not_written_into_the_audit_trail(api: Api) -> None:
    job = dead_creation(api)
    redrive(api, job["id"], patch={"metadata": {"password": "hunter2", "plain": "kept"}})
    (row,) = audit(api, job["id"])
    assert "hunter2" not in json.dumps(row.detail)
    assert row.detail["patch"]["metadata"]["plain"] == "kept"


def test_part_of_a_parent_is_judged_by_its_parent(api: Api) -> None:
    entity = api.create()["id"]
    job = api.request("POST", f"{ENTITIES}/{entity}/related", json_body={"type": "note", "value": 1}).json
    api.kill(job["id"])
    assert redrive(api, job["id"], dryRun=True).json["outcome"] == "succeeded"
    removed = api.request("DELETE", f"{ENTITIES}/{entity}").json
    api.apply(removed["id"])
    assert redrive(api, job["id"]).status == 404
    other = api.create()["id"]
    kept = api.request("POST", f"{ENTITIES}/{other}/related", json_body={"type": "note", "value": 1}).json
    api.kill(kept["id"])
    assert redrive(api, kept["id"], patch={"value": 2}).status == 202
    api.apply(kept["id"])
    assert api.request("GET", f"{JOBS}/{kept['id']}").json["result"]["value"] == 2
