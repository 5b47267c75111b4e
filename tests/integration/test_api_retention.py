"""What the API says of jobs past their retention: 410 by the id alone, 404 of what never was."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection

from models import explanation
from models.explanation import Facts
from models.identity.principals import Role
from models.ids import earliest_id, new_id
from models.job import Job, JobState
from models.ledger import Outcome
from models.retention import CLOCKS_DIFFER_BY, Retention
from tests.kit.ageing import aged, published
from tests.kit.api import Answer, Api, running_api
from tests.kit.platform import Platform, running_platform

ENTITIES, JOBS = "/api/v1/entities", "/api/v1/jobs"
KEPT = timedelta(days=30)
ROUTES = (
    *(("GET", ""), ("GET", "/result"), ("GET", "/events"), ("GET", "/explain")),
    *(("POST", "/cancel"), ("POST", "/redrive")),
)


@pytest.fixture(scope="module")
def api(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(database_url, tmp_path_factory.mktemp("data")) as running:
        yield running


@pytest.fixture(scope="module")
def ledger(api: Api, database_url: str) -> Iterator[Platform]:
    with running_platform(database_url) as platform:
        yield platform


def ask(api: Api, method: str, identifier: object, suffix: str, role: Role = Role.USER) -> Answer:
    body = {"reason": "look"} if suffix == "/redrive" else None
    return api.request(method, f"{JOBS}/{identifier}{suffix}", role=role, json_body=body)


def finished(api: Api, ledger: Platform, state: JobState = JobState.FAILED, **headers: str) -> UUID:
    """A job of the user's that ended 31 days ago; its id."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    job = api.request("POST", ENTITIES, json_body={"name": "Ada"}, headers=named).json["id"]
    with ledger.database.transaction() as connection:
        ledger.ledger.finish(
            connection, [Outcome(job_id=UUID(job), state=state, attempt=1, error={"status": 409})]
        )
    published(ledger, timedelta(days=31))
    return aged(ledger, UUID(job), timedelta(days=31))


def prune(ledger: Platform) -> int:
    retention = Retention(ledger.database, finished=KEPT, audit=KEPT)
    return sum(batch.rows.get("jobs", 0) for batch in retention.batches())


def ids_that_never_were() -> dict[str, int]:
    now = datetime.now(UTC)
    return {
        "x": 404,
        str(new_id()): 404,
        str(uuid4()): 404,
        "ffffffff-ffff-7fff-bfff-ffffffffffff": 404,
        "00000000-0000-0000-0000-000000000000": 404,
        _forged(now - KEPT + timedelta(minutes=1)): 404,
        _forged(now - KEPT - timedelta(minutes=1)): 410,
        _forged(datetime(1970, 1, 1, tzinfo=UTC)): 410,
    }


def _forged(moment: datetime) -> str:
    return str(UUID(int=earliest_id(moment).int | 7 << 76 | 2 << 62 | 1))


@pytest.mark.parametrize(("method", "suffix"), ROUTES)
@pytest.mark.parametrize("role", [Role.USER, Role.ADMIN])
def test_id_alone_decides_of_what_is_not_there(api: Api, method: str, suffix: str, role: Role) -> None:
    expected = ids_that_never_were()
    assert {one: ask(api, method, one, suffix, role).status for one in expected} == expected


@pytest.mark.parametrize(("method", "suffix"), ROUTES)
def test_pruned_job_is_gone_for_everybody(api: Api, ledger: Platform, method: str, suffix: str) -> None:
    job = finished(api, ledger)
    assert ask(api, "GET", job, "").status == 200
    assert prune(ledger) == 1
    for role in (Role.USER, Role.ADMIN, Role.GUEST):
        answer = ask(api, method, job, suffix, role)
        assert (answer.status, answer.json["error"]) == (410, "Gone")


def test_job_that_goes_while_it_is_explained_is_gone(
    api: Api, ledger: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, gather = finished(api, ledger), explanation.gather

    def gather_too_late(connection: Connection, found: Job, *more: Any) -> Facts:
        prune(ledger)
        return gather(connection, found, *more)

    monkeypatch.setattr(explanation, "gather", gather_too_late)
    assert ask(api, "GET", job, "/explain").status == 410


def test_job_that_is_pruned_is_gone_by_every_clock(api: Api, ledger: Platform) -> None:
    job = api.request("POST", ENTITIES, json_body={"name": "Ada"}).json["id"]
    api.apply(job)
    by = KEPT + CLOCKS_DIFFER_BY
    published(ledger, by)
    young = aged(ledger, UUID(job), by - timedelta(seconds=20))
    assert prune(ledger) == 0
    aged(ledger, young, timedelta(seconds=30))
    assert prune(ledger) == 1


def test_old_job_of_somebody_else_cannot_be_told_from_one_that_is_gone(api: Api, ledger: Platform) -> None:
    dead = finished(api, ledger, JobState.DEAD)
    prune(ledger)
    seen = {role: ask(api, "GET", dead, "", role).status for role in Role}
    assert seen == {Role.USER: 200, Role.ADMIN: 200, Role.GUEST: 410}


def test_key_of_a_pruned_job_makes_a_new_one(api: Api, ledger: Platform) -> None:
    job = finished(api, ledger, Idempotency_Key="again")
    send: dict[str, Any] = {"json_body": {"name": "Ada"}, "headers": {"Idempotency-Key": "again"}}
    replay = api.request("POST", ENTITIES, **send)
    assert (replay.json["id"], replay.headers["idempotent-replayed"]) == (str(job), "true")
    prune(ledger)
    fresh = api.request("POST", ENTITIES, **send)
    assert (fresh.status, fresh.json["state"]) == (202, "queued")
    assert "idempotent-replayed" not in fresh.headers


def test_zero_keeps_for_good_so_nothing_is_gone(tmp_path: Path, database_url: str) -> None:
    with running_api(database_url, tmp_path, retention_days=0) as api:
        assert ask(api, "GET", _forged(datetime(1970, 1, 1, tzinfo=UTC)), "").status == 404
