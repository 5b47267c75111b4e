"""The operator's commands on a real ledger: users, tokens, jobs, dead letters, contracts."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from deploy.cli import waybill
from models.errors import Conflict, NotFound
from models.ids import new_id
from models.job import JobState
from models.ledger import Outcome
from tests.kit.platform import Platform

Run = Callable[..., Result]


@pytest.fixture
def run(platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    environment = {
        "WAYBILL_DATABASE_URL": platform.container.settings.database_url,
        "WAYBILL_DATA_DIR": str(platform.container.settings.data_dir),
    }

    def command(*arguments: str) -> Result:
        return CliRunner().invoke(waybill, arguments, env=environment)

    return command


def test_user_that_was_added_is_listed_and_gets_a_token(run: Run, platform: Platform) -> None:
    email = f"{new_id().hex}@example.org"
    assert run("user", "add", email, "--role", "guest", "--password", "first").exit_code == 0
    assert run("user", "password", email, "--password", "second").exit_code == 0
    assert f"guest {email}" in run("user", "list").output
    principal = platform.container.tokens.verify(run("token", email).output.strip()).principal
    assert principal.email == email
    assert isinstance(run("user", "add", email, "--password", "again").exception, Conflict)


def test_job_is_listed_shown_and_cancelled(run: Run, platform: Platform) -> None:
    [job_id] = platform.accept(platform.create())
    assert str(job_id) in run("jobs", "--state", "queued", "--resource", "entities").output
    assert json.loads(run("jobs", "show", str(job_id)).output)["state"] == "queued"
    assert run("jobs", "cancel", str(job_id)).exit_code == 0
    assert platform.states([job_id]) == ["cancelled"]
    assert isinstance(run("jobs", "cancel", str(job_id)).exception, Conflict)
    assert isinstance(run("jobs", "show", str(new_id())).exception, NotFound)


def test_dead_job_is_listed_and_redriven(run: Run, platform: Platform) -> None:
    [job_id] = platform.accept(platform.create())
    dead = Outcome(job_id=job_id, state=JobState.DEAD, attempt=8, error={"message": "it broke"})
    with platform.database.transaction() as connection:
        platform.ledger.finish(connection, [dead])
    listed = run("dead-letters").output
    assert str(job_id) in listed
    assert "it broke" in listed
    assert run("dead-letters", "redrive", str(job_id), "--reason", "mended").exit_code == 0
    assert platform.states([job_id]) == ["queued"]


@pytest.mark.parametrize(("command", "member"), [("openapi", "paths"), ("asyncapi", "channels")])
def test_contract_names_every_resource(run: Run, command: str, member: str) -> None:
    assert "entities" in json.dumps(json.loads(run(command).output)[member])
