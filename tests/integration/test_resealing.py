"""Sealing keys rotated while jobs wait and rest: what may yet be applied is sealed anew, and nothing else."""

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from click.testing import CliRunner, Result
from pydantic import SecretStr
from sqlalchemy import text

from deploy.cli import waybill
from models.audit import Actor
from models.container import Container
from models.dead_letters.redriving import RedriveOrder
from models.identity.resealing import Resealed, reseal
from models.ids import new_id
from models.job import Job, JobState, Operation, Submission, to_json
from models.ledger import Outcome
from tasks.applier import Applier
from tests.kit import lockers
from tests.kit.platform import PROMPT, Platform, running_platform
from tests.kit.waiting import wait_until

OLD, NEW = (f"{name}:{base64.b64encode(name.encode() * 32).decode()}" for name in "ab")
PASSWORD = "correct horse battery staple"
LATER = datetime.now(UTC) + timedelta(days=7)
OPERATOR = Actor(None, "operator")


@pytest.fixture(scope="module")
def module_platform(database_url: str) -> Iterator[Platform]:
    """Sealing under the old key, as the door did when the jobs came."""
    resources = ("tests.kit.lockers",)
    with running_platform(database_url, sealing_keys=SecretStr(OLD), resources=resources) as platform:
        with platform.database.transaction() as connection:
            lockers.TABLE.create(connection, checkfirst=True)
        yield platform


@contextmanager
def sealing_with(platform: Platform, *keys: str) -> Iterator[Container]:
    """A process that was restarted with these keys."""
    settings = platform.settings.model_copy(update={"sealing_keys": SecretStr(",".join(keys))})
    container = Container(settings, role="test", pool_size=3)
    try:
        yield container
    finally:
        container.close()


def rotated(platform: Platform) -> Resealed:
    """What became of the jobs."""
    with sealing_with(platform, NEW, OLD) as container:
        *_, jobs = reseal(container.database, container.sealer, container.registry)
    assert jobs.column == "jobs.payload"
    return jobs


def user(platform: Platform, email: str, **more: Any) -> Submission:
    """The creation of a user, as an edge hands it over."""
    resource_id = new_id()
    given = to_json({"email": email, "password": PASSWORD})
    payload = platform.registry["users"].service.secured(given, resource_id)
    return platform.submission(
        Operation.CREATE, resource_id, resource="users", payload=payload, by=platform.admin, **more
    )


def locker(platform: Platform) -> Submission:
    resource_id = new_id()
    given = to_json({"label": "mine", "pin": "0000"})
    payload = platform.registry["lockers"].service.secured(given, resource_id)
    return platform.submission(Operation.CREATE, resource_id, resource="lockers", payload=payload)


def end(platform: Platform, job_id: UUID, state: JobState = JobState.DEAD) -> None:
    with platform.database.transaction() as connection:
        platform.ledger.finish(connection, [Outcome(job_id=job_id, state=state, attempt=8)])


def applied(container: Container, job_id: UUID) -> Job:
    """The job after a worker with the container's keys was at it."""
    Applier(
        container.database,
        container.ledger,
        container.registry,
        container.users,
        container.views,
        PROMPT,
        sleep=lambda _: None,
    ).apply([job_id])
    with container.database.snapshot() as connection:
        return container.ledger.find(connection, [job_id])[job_id]


def row(platform: Platform, job_id: UUID) -> dict[str, Any]:
    (found,) = platform.rows("SELECT to_jsonb(j) FROM jobs AS j WHERE id = :id", id=job_id)
    document: dict[str, Any] = found[0]
    return document


def seals(platform: Platform, member: str = "pin") -> set[str]:
    """The beginnings of what is sealed in the ledger."""
    query = "SELECT DISTINCT left(payload->>:member, 5) FROM jobs"
    return {one[0] for one in platform.rows(query, member=member)}


def test_scheduled_user_is_made_after_the_old_key_is_dropped(platform: Platform) -> None:
    email = f"{new_id()}@example.org"
    (job_id,) = platform.accept(user(platform, email, run_at=LATER))
    assert rotated(platform) == Resealed("jobs.payload", 1, 0)
    with sealing_with(platform, NEW) as container:
        platform.rows("UPDATE jobs SET announce_at = now()")
        with container.database.transaction() as connection:
            assert container.ledger.wake_scheduled(connection, 10) == 1
        job = applied(container, job_id)
        assert (job.state, job.error) == (JobState.SUCCEEDED, None)
        assert container.sign_in.log_in(email, PASSWORD, None, "192.0.2.1").access_token


def test_what_an_older_version_did_not_seal_is_sealed(platform: Platform) -> None:
    (job_id,) = platform.accept(locker(platform))
    platform.rows(
        "UPDATE jobs SET payload = CAST(CAST(payload AS jsonb) || CAST(:more AS jsonb) AS json)",
        more='{"word": "mellon", "salt": null}',
    )
    assert rotated(platform) == Resealed("jobs.payload", 2, 0)
    assert "mellon" not in str(row(platform, job_id))
    with sealing_with(platform, NEW) as container:
        assert applied(container, job_id).state is JobState.SUCCEEDED
    assert platform.rows("SELECT word, salt FROM lockers") == [(lockers.digest("mellon"), None)]


@pytest.mark.parametrize("state", ["queued", "retrying"])
def test_user_that_waits_is_made_after_the_old_key_is_dropped(platform: Platform, state: str) -> None:
    (job_id,) = platform.accept(user(platform, f"{new_id()}@example.org"))
    platform.rows("UPDATE jobs SET state = :state, run_at = now()", state=state)
    assert rotated(platform).sealed == 1
    with sealing_with(platform, NEW) as container:
        assert applied(container, job_id).state is JobState.SUCCEEDED


def test_dead_user_is_redriven_after_the_old_key_is_dropped(platform: Platform) -> None:
    email = f"{new_id()}@example.org"
    (job_id,) = platform.accept(user(platform, email))
    end(platform, job_id)
    assert rotated(platform) == Resealed("jobs.payload", 1, 0)
    with sealing_with(platform, NEW) as container:
        container.redriver.redrive_one(job_id, RedriveOrder(reason="x", patch={"role": "guest"}), OPERATOR)
        assert applied(container, job_id).state is JobState.SUCCEEDED
        assert container.sign_in.log_in(email, PASSWORD, None, "192.0.2.1").access_token


def test_nothing_of_a_job_changes_but_its_seals(platform: Platform) -> None:
    (job_id,) = platform.accept(
        user(platform, "x@example.org", run_at=LATER, idempotency_key="k", fingerprint=b"f")
    )
    before = row(platform, job_id)
    keys = platform.rows("SELECT * FROM idempotency_keys")
    assert rotated(platform).sealed == 1
    after = row(platform, job_id)
    assert platform.rows("SELECT * FROM idempotency_keys") == keys
    assert before.pop("payload") | {"password": ""} == after["payload"] | {"password": ""}
    assert after.pop("payload")["password"].startswith("v1.b.")
    assert after == before
    assert rotated(platform) == Resealed("jobs.payload", 0, 0)


@pytest.mark.parametrize("how", [*sorted({"succeeded", "failed", "cancelled", "expired"}), "discarded"])
def test_job_that_is_never_applied_again_stays_as_it_is(platform: Platform, how: str) -> None:
    (job_id,) = platform.accept(locker(platform))
    end(platform, job_id, JobState.DEAD if how == "discarded" else JobState(how))
    if how == "discarded":
        platform.container.redriver.discard([job_id], "old", OPERATOR)
    before = row(platform, job_id)
    assert rotated(platform) == Resealed("jobs.payload", 0, 0)
    assert row(platform, job_id) == before


def test_more_jobs_than_a_batch_are_sealed_anew(platform: Platform) -> None:
    platform.accept(*(locker(platform) for _ in range(450)))
    platform.accept(platform.create())
    assert rotated(platform) == Resealed("jobs.payload", 450, 0)
    assert seals(platform) == {"v1.b.", None}


def test_job_that_somebody_is_at_is_told_and_sealed_anew_the_next_time(platform: Platform) -> None:
    held, other = platform.accept(locker(platform), locker(platform))
    with platform.database.transaction() as connection:
        connection.execute(text("SELECT 1 FROM jobs WHERE id = :id FOR NO KEY UPDATE"), {"id": held})
        assert rotated(platform) == Resealed("jobs.payload", 1, 0, busy=1)
    assert row(platform, other)["payload"]["pin"].startswith("v1.b.")
    assert row(platform, held)["payload"]["pin"].startswith("v1.a.")
    assert rotated(platform) == Resealed("jobs.payload", 1, 0)
    assert seals(platform) == {"v1.b."}


@pytest.mark.parametrize(("ends", "sealed"), [(False, 2), (True, 1)])
def test_job_that_a_worker_is_at_is_waited_for(platform: Platform, *, ends: bool, sealed: int) -> None:
    held, _ = platform.accept(locker(platform), locker(platform))
    waits = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    with ThreadPoolExecutor(1) as threads:
        with platform.database.transaction() as connection:
            connection.execute(text("SELECT 1 FROM jobs WHERE id = :id FOR NO KEY UPDATE"), {"id": held})
            resealing = threads.submit(rotated, platform)
            wait_until(lambda: platform.rows(waits)[0][0] == 1, what="it waits for the job")
            if ends:
                outcome = Outcome(job_id=held, state=JobState.FAILED, attempt=1)
                platform.ledger.finish(connection, [outcome])
        assert resealing.result() == Resealed("jobs.payload", sealed, 0)
    assert seals(platform) == ({"v1.a.", "v1.b."} if ends else {"v1.b."})


def test_secret_that_no_key_opens_is_told_and_keeps_no_other_from_its_seal(platform: Platform) -> None:
    lost, _ = platform.accept(locker(platform), locker(platform))
    platform.rows("UPDATE jobs SET payload = json_build_object('pin', '0000') WHERE id = :id", id=lost)
    assert rotated(platform) == Resealed("jobs.payload", 1, 1)
    assert row(platform, lost)["payload"] == {"pin": "0000"}


# ---- by command ----------------------------------------------------------------------


def rotate(platform: Platform, tmp_path: Path, *keys: str, resources: str = "tests.kit.lockers") -> Result:
    environment = {
        "WAYBILL_DATABASE_URL": platform.settings.database_url,
        "WAYBILL_DATA_DIR": str(platform.settings.data_dir),
        "WAYBILL_SEALING_KEYS": ",".join(keys),
        "WAYBILL_RESOURCES": resources,
    }
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path)
        return CliRunner().invoke(waybill, ["doctor", "--rotate-keys"], env=environment)


def test_command_seals_jobs_anew_and_names_what_is_lost(platform: Platform, tmp_path: Path) -> None:
    platform.accept(locker(platform))
    lost = rotate(platform, tmp_path, NEW)
    assert (lost.exit_code, "jobs.payload: 0 sealed anew, 1 LOST" in lost.output) == (1, True)
    assert "discard" in lost.output
    done = rotate(platform, tmp_path, NEW, OLD)
    assert (done.exit_code, "jobs.payload: 1 sealed anew\n" in done.output) == (0, True), done.output


def test_command_that_does_not_know_a_resource_says_that_its_jobs_were_not_looked_at(
    platform: Platform, tmp_path: Path
) -> None:
    platform.accept(locker(platform), platform.create())
    told = rotate(platform, tmp_path, NEW, OLD, resources="")
    assert (told.exit_code, seals(platform)) == (1, {"v1.a.", None})
    assert "jobs.payload of lockers: 0 sealed anew, 1 UNKNOWN" in told.output
    assert "WAYBILL_RESOURCES" in told.output
    assert rotate(platform, tmp_path, NEW, OLD).exit_code == 0
