"""Secrets that an operator's edit brings to a dead job: sealed at once, told by nothing, applied."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from deploy.cli import waybill
from models.identity.principals import Role
from models.identity.sealing import Sealer
from models.ids import new_id
from models.service import MAX_SECRETS
from tests.kit import lockers
from tests.kit.api import PASSWORD, Answer, Api, running_api

JOBS, USERS, LOCKERS = "/api/v1/jobs", "/api/v1/users", "/api/v1/lockers"
SECRET = "a secret to be found nowhere"
PIN = "pin 4711"


@pytest.fixture(scope="module")
def module_api(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    data_dir: Path = tmp_path_factory.mktemp("data")
    with running_api(database_url, data_dir, resources=("tests.kit.lockers",)) as running:
        with running.container.database.transaction() as connection:
            lockers.TABLE.create(connection, checkfirst=True)
        yield running


@pytest.fixture
def api(module_api: Api) -> Api:
    for table in ("audit", "jobs", "lockers"):
        rows(module_api, f"DELETE FROM {table}")  # noqa: S608 - no input
    return module_api


def rows(api: Api, query: str, **parameters: Any) -> list[Any]:
    with api.container.database.transaction() as connection:
        result = connection.execute(text(query), parameters)
        return list(result.all()) if result.returns_rows else []


def dead_user(api: Api, **members: Any) -> Any:
    given = {"email": f"{new_id()}@example.org", "password": PASSWORD} | members
    job = api.request("POST", USERS, role=Role.ADMIN, json_body=given).json
    api.kill(job["id"])
    return job | {"email": given["email"]}


def dead_locker(api: Api, pin: str = "0000") -> str:
    job: str = api.request("POST", LOCKERS, json_body={"label": "left", "pin": pin}).json["id"]
    api.kill(job)
    return job


def redrive(api: Api, job: str, **body: Any) -> Answer:
    answer = api.request(
        "POST", f"{JOBS}/{job}/redrive", role=Role.ADMIN, json_body={"reason": "mended", **body}
    )
    assert SECRET not in answer.body.decode()
    assert PIN not in answer.body.decode()
    return answer


def log_in(api: Api, email: str, password: str) -> int:
    given = {"email": email, "password": password}
    return api.request("POST", "/auth/login", role=None, json_body=given).status


def kept(api: Api) -> str:
    """All that is known of jobs and of what was done to them."""
    (ledger,) = rows(api, "SELECT json_agg(j)::text FROM jobs AS j")
    (audit,) = rows(api, "SELECT json_agg(a)::text FROM audit AS a")
    return f"{ledger[0]}{audit[0]}"


def patches(api: Api) -> list[Any]:
    return [row[0]["patch"] for row in rows(api, "SELECT detail FROM audit ORDER BY at, id")]


def test_password_that_mends_a_user_is_kept_nowhere_and_logs_in(api: Api) -> None:
    job = dead_user(api)
    purpose = f"users.password_hash/{job['resourceId']}"
    lost = {"email": job["email"], "password": Sealer({"lost": b"x" * 32}).seal("hash", purpose)}
    rows(api, "UPDATE jobs SET payload = CAST(:lost AS json)", lost=json.dumps(lost))
    as_it_is = redrive(api, job["id"], dryRun=True).json
    assert (as_it_is["outcome"], as_it_is["reason"]) == ("dead", "Unsealable")

    foreseen = redrive(api, job["id"], dryRun=True, patch={"password": SECRET}).json
    assert (foreseen["outcome"], foreseen["result"]["email"]) == ("succeeded", job["email"])
    assert redrive(api, job["id"], patch={"password": SECRET}).status == 202
    assert SECRET not in kept(api)
    assert "argon2" not in kept(api)
    api.apply(job["id"])
    assert api.request("GET", f"{JOBS}/{job['id']}", role=Role.ADMIN).json["state"] == "succeeded"
    assert log_in(api, job["email"], SECRET) == 200
    assert SECRET not in kept(api)


def test_secret_that_the_edit_does_not_name_stays_as_it_was_sealed(api: Api) -> None:
    job = dead_user(api)
    (before,) = rows(api, "SELECT payload->>'password' FROM jobs")
    assert redrive(api, job["id"], patch={"role": "guest"}).status == 202
    assert rows(api, "SELECT payload->>'password', payload->>'role' FROM jobs") == [(*before, "guest")]
    api.apply(job["id"])
    assert log_in(api, job["email"], PASSWORD) == 200


def test_sealed_text_of_the_job_that_is_given_back_is_a_password_like_any_other(api: Api) -> None:
    job = dead_user(api)
    (sealed,) = rows(api, "SELECT payload->>'password' FROM jobs")
    assert redrive(api, job["id"], patch={"password": sealed[0]}).status == 202
    api.apply(job["id"])
    assert [log_in(api, job["email"], one) for one in (PASSWORD, sealed[0])] == [401, 200]


@pytest.mark.parametrize("password", ["short", "x" * 300, "a" * 20, 7, {"a": 1}, None])
@pytest.mark.parametrize("dry_run", [False, True])
def test_password_that_does_not_do_is_refused_and_not_written_down(
    api: Api, password: Any, *, dry_run: bool
) -> None:
    job = dead_user(api)
    (before,) = rows(api, "SELECT payload::text, state FROM jobs")
    answer = redrive(api, job["id"], dryRun=dry_run, patch={"password": password})
    assert (answer.status, [one["field"] for one in answer.json["details"]]) == (400, ["password"])
    assert rows(api, "SELECT payload::text, state FROM jobs") == [before]
    assert patches(api) == [{"password": "***"}]


def test_secret_is_masked_in_the_audit_by_its_declaration_whatever_its_name(api: Api) -> None:
    job = dead_locker(api)
    edit = {"label": "mended", "pin": PIN}
    assert redrive(api, job, dryRun=True, patch=edit).json["outcome"] == "succeeded"
    assert redrive(api, job, patch=edit).status == 202
    assert redrive(api, job, patch=edit).status == 409
    assert redrive(api, job, patch={"pin_digest": PIN}).status == 409
    assert PIN not in kept(api)
    assert patches(api)[:3] == [{"label": "mended", "pin": "***"}] * 3
    api.apply(job)
    assert rows(api, "SELECT label, pin_digest FROM lockers") == [("mended", lockers.digest(PIN))]


def test_secret_of_one_resource_is_masked_where_the_order_is_for_others_too(api: Api) -> None:
    entity = api.request("POST", "/api/v1/entities", json_body={"name": "crate"}).json["id"]
    api.kill(entity)
    body = {"reason": "x", "ids": [dead_locker(api), entity], "patch": {"pin": PIN, "pin_digest": PIN}}
    api.request("POST", "/api/v1/dead-letters/redrive", role=Role.ADMIN, json_body=body)
    assert PIN not in kept(api)
    assert patches(api)[:2] == [{"pin": "***", "pin_digest": "***"}] * 2


def test_edit_of_what_nobody_knows_is_masked_as_a_whole(api: Api) -> None:
    gone = dead_locker(api)
    rows(api, "UPDATE jobs SET resource = 'cupboards'")
    assert redrive(api, gone, patch={"pin": PIN}).status == 409
    body = {"reason": "x", "ids": [str(new_id())], "patch": {"pin": PIN, "label": "plain"}}
    answer = api.request("POST", "/api/v1/dead-letters/redrive", role=Role.ADMIN, json_body=body)
    assert answer.json["jobs"][0]["error"]["status"] == 404
    assert patches(api) == [{"pin": "***"}, {"pin": "***", "label": "***"}]


def test_secret_in_the_edit_of_a_patch_is_sealed_too(api: Api) -> None:
    created = api.request("POST", LOCKERS, json_body={"label": "mine", "pin": "0000"}).json
    api.apply(created["id"])
    place = f"{LOCKERS}/{created['resourceId']}"
    job = api.request("PATCH", place, json_body={"label": "renamed"}).json["id"]
    api.kill(job)
    assert redrive(api, job, patch={"pin": PIN}).status == 202
    assert PIN not in kept(api)
    api.apply(job)
    assert rows(api, "SELECT label, pin_digest FROM lockers") == [("renamed", lockers.digest(PIN))]


def test_redrive_of_many_takes_only_so_many_secrets(api: Api) -> None:
    ids = [dead_locker(api) for _ in range(MAX_SECRETS + 1)]
    body = {"reason": "x", "filter": {"resource": "lockers"}, "patch": {"pin": PIN}}
    answer = api.request("POST", "/api/v1/dead-letters/redrive", role=Role.ADMIN, json_body=body)
    *taken, refused = answer.json["jobs"]
    assert [one["id"] for one in taken] == ids[:-1]
    assert (refused["index"], refused["error"]["status"]) == (MAX_SECRETS, 400)
    assert len({row[0] for row in rows(api, "SELECT payload->>'pin' FROM jobs")}) == len(ids)
    rest = api.request("POST", "/api/v1/dead-letters/redrive", role=Role.ADMIN, json_body=body).json
    assert [one["id"] for one in rest["jobs"]] == ids[-1:]
    assert PIN not in kept(api)
    api.apply(*ids)
    assert rows(api, "SELECT DISTINCT pin_digest FROM lockers") == [(lockers.digest(PIN),)]


def test_redrive_of_many_without_a_secret_in_its_edit_is_not_limited(api: Api) -> None:
    ids = [dead_locker(api) for _ in range(MAX_SECRETS + 1)]
    body = {"reason": "x", "ids": ids, "patch": {"label": "mended"}}
    answer = api.request("POST", "/api/v1/dead-letters/redrive", role=Role.ADMIN, json_body=body)
    assert [one.get("id") for one in answer.json["jobs"]] == ids


def test_command_seals_the_secret_of_its_edit(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = api.container.settings
    environment = {"WAYBILL_DATABASE_URL": settings.database_url, "WAYBILL_DATA_DIR": str(settings.data_dir)}
    job = dead_user(api)
    edit = json.dumps({"password": SECRET})
    arguments = ["dead-letters", "redrive", job["id"], "--reason", "mended", "--patch"]
    foreseen = CliRunner().invoke(waybill, [*arguments, edit, "--dry-run"], env=environment)
    assert json.loads(foreseen.output)["outcome"] == "succeeded"
    done = CliRunner().invoke(waybill, [*arguments, "-"], input=edit, env=environment)
    assert done.exit_code == 0, done.output
    assert SECRET not in foreseen.output + done.output + kept(api)
    api.apply(job["id"])
    assert log_in(api, job["email"], SECRET) == 200


@pytest.mark.parametrize("pin", ["000", "123456789", "12.34"])
def test_edit_keeps_the_rules_of_what_it_brings(api: Api, pin: str) -> None:
    job = dead_locker(api)
    assert redrive(api, job, patch={"pin": pin}).status == 400
    assert redrive(api, job, patch={"label": "mended"}).status == 202


def test_member_that_only_a_creation_has_is_sealed_and_kept_too(api: Api) -> None:
    body = {"label": "mine", "pin": "0000", "word": "mellon"}
    created = api.request("POST", LOCKERS, json_body=body).json
    assert "mellon" not in str(rows(api, "SELECT * FROM jobs"))
    api.apply(created["id"])
    changed = api.request("PATCH", f"{LOCKERS}/{created['resourceId']}", json_body={"label": "x"}).json
    api.apply(changed["id"])
    [(label, word, salt)] = rows(api, "SELECT label, word, salt FROM lockers")
    assert (label, word, len(salt)) == ("x", lockers.digest("mellon"), 32)


def test_secret_that_may_be_null_is_kept_as_null(api: Api) -> None:
    body = {"label": "mine", "pin": "0000", "word": None}
    created = api.request("POST", LOCKERS, json_body=body)
    assert created.status == 202
    api.apply(created.json["id"])
    assert rows(api, "SELECT label, word FROM lockers") == [("mine", None)]


def test_what_an_older_version_did_not_seal_is_kept_as_if_it_had(api: Api) -> None:
    """It knew no write-only members of creations alone."""
    body = {"label": "mine", "pin": "0000", "word": "mellon"}
    job = api.request("POST", LOCKERS, json_body=body).json["id"]
    rows(
        api,
        """UPDATE jobs SET payload = jsonb_set(CAST(payload AS jsonb), '{word}', '"mellon"') RETURNING id""",
    )
    api.apply(job)
    assert rows(api, "SELECT word FROM lockers") == [(lockers.digest("mellon"),)]
