"""The operator's commands on a real ledger: users, tokens, jobs, dead letters, contracts."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
from click.testing import CliRunner, Result

from deploy.cli import waybill
from models.dead_letters.messages import DeadMessage, DeadMessages
from models.errors import Conflict, Gone, Invalid, NotFound
from models.ids import new_id
from models.job import JobState
from models.ledger import Outcome
from tests.kit.ageing import many_finished
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


def test_what_is_past_its_retention_is_counted_then_pruned(run: Run, platform: Platform) -> None:
    many_finished(platform, 450)
    ((old,),) = platform.rows("SELECT id FROM jobs LIMIT 1")
    assert re.search(r"^jobs +450$", run("jobs", "prune", "--dry-run").output, re.MULTILINE)
    assert run("jobs", "show", str(old)).exit_code == 0
    told = run("jobs", "prune").output
    assert re.search(r"^jobs +450$", told, re.MULTILINE)
    assert re.search(r"^job_events +900$", told, re.MULTILINE)
    assert isinstance(run("jobs", "show", str(old)).exception, Gone)
    assert re.search(r"^jobs +0$", run("jobs", "prune", "--dry-run").output, re.MULTILINE)


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


@pytest.fixture
def dead(platform: Platform) -> str:
    (job_id,) = platform.accept(platform.create("Ada"))
    outcome = Outcome(job_id=job_id, state=JobState.DEAD, attempt=8, error={"message": "it broke"})
    with platform.database.transaction() as connection:
        platform.ledger.finish(connection, [outcome])
    return str(job_id)


def test_dead_letter_is_grouped_shown_foreseen_edited_and_redriven(
    run: Run, platform: Platform, dead: str
) -> None:
    (group,) = run("dead-letters", "groups").output.splitlines()
    assert "it broke" in group
    assert dead in run("dead-letters", "list", "--error", group.split()[0]).output
    assert json.loads(run("dead-letters", "show", dead).output)["data"] == {"name": "Ada"}
    mend = ("dead-letters", "redrive", dead, "--reason", "mended", "--patch", '{"name": "Grace"}')
    foreseen = json.loads(run(*mend, "--dry-run").output)
    assert (foreseen["outcome"], foreseen["result"]["name"]) == ("succeeded", "Grace")
    assert platform.states([UUID(dead)]) == ["dead"]
    assert "generation 2" in run(*mend).output
    platform.applier().apply([UUID(dead)])
    assert platform.result(UUID(dead))["name"] == "Grace"


def test_dead_letters_are_chosen_by_all_that_the_api_chooses_them_by(
    run: Run, platform: Platform, dead: str
) -> None:
    instance = str(platform.job(UUID(dead)).resource_id)
    fitting = (
        ("--resource-id", instance),
        ("--operation", "create"),
        ("--died-after", "2001-01-01T00:00:00Z", "--died-before", "2099-01-01T00:00:00Z"),
    )
    others = (
        ("--resource-id", str(new_id())),
        ("--operation", "patch"),
        ("--died-after", "2099-01-01T00:00:00Z"),
        ("--died-before", "2001-01-01T00:00:00Z"),
    )
    for which in fitting:
        assert dead in run("dead-letters", "list", *which).output
        assert "it broke" in run("dead-letters", "groups", *which).output
    for which in others:
        assert run("dead-letters", "list", *which).output == ""
        assert run("dead-letters", "groups", *which).output == ""
        assert run("dead-letters", "redrive", *which, "--reason", "x").output == "0 of 0\n"
    (line,) = run("dead-letters", "list").output.splitlines()
    group = line.split()[-1].strip("[]")
    found = run("dead-letters", "redrive", "--error", group, "--resource-id", instance, "--reason", "x")
    assert f"{dead}  redriven" in found.output


@pytest.mark.parametrize("patch", ['{"colour": 1}', "[1]", "{", '{"name": null}'])
def test_impossible_patch_changes_nothing_and_fails(
    run: Run, platform: Platform, dead: str, patch: str
) -> None:
    result = run("dead-letters", "redrive", dead, "--reason", "x", "--patch", patch)
    assert isinstance(result.exception, Conflict | Invalid)
    assert platform.states([UUID(dead)]) == ["dead"]


def test_discarded_letter_is_listed_no_more(run: Run, dead: str) -> None:
    assert run("dead-letters", "discard", dead, "--reason", "old").exit_code == 0
    assert dead not in run("dead-letters").output
    assert dead in run("dead-letters", "list", "--discarded").output
    assert isinstance(run("dead-letters", "discard", dead, "--reason", "old").exception, Conflict)
    assert isinstance(run("dead-letters", "redrive", dead, "--reason", "x").exception, Conflict)


@pytest.mark.parametrize(
    "arguments",
    [
        ("redrive", "--reason", "x"),
        ("redrive", "no-id", "--reason", "x"),
        ("redrive", str(new_id())),
        ("discard", "--reason", "x"),
        ("show", "x"),
        ("redrive", str(new_id()), "--reason", " "),
        ("redrive", str(new_id()), "--reason", "a\tb"),
        ("redrive", str(new_id()), "--reason", "x" * 1001),
        ("redrive", str(new_id()), "--reason", "x", "--operation", "create"),
        ("discard", str(new_id()), "--reason", ""),
        ("list", "--died-after", "soon"),
    ],
)
def test_incomplete_command_is_a_usage_error(run: Run, arguments: tuple[str, ...]) -> None:
    assert run("dead-letters", *arguments).exit_code == 2


def test_dead_messages_are_listed_with_what_the_ledger_held(run: Run, platform: Platform) -> None:
    message = DeadMessage(
        digest=new_id().bytes,
        queue="waybill.jobs",
        reason="rejected",
        task=None,
        are_jobs=False,
        ids=(),
        headers={},
        content_type=None,
        size=3,
        body=b"abc",
    )
    with platform.database.transaction() as connection:
        assert DeadMessages().keep(connection, message)
    assert "rejected  waybill.jobs" in run("dead-letters", "messages").output


@pytest.mark.parametrize(("command", "member"), [("openapi", "paths"), ("asyncapi", "channels")])
def test_contract_names_every_resource(run: Run, command: str, member: str) -> None:
    assert "entities" in json.dumps(json.loads(run(command).output)[member])
