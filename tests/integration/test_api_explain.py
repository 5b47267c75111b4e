"""GET /jobs/{id}/explain: each fact that it tells, staged; and who may ask."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from models.breaker import THRESHOLD, BreakerBoard
from models.identity.principals import Role
from models.ids import new_id
from models.job import Priority
from models.retry import RetryPolicy
from tasks.applier import Applier
from tasks.presence import QueueState
from tests.kit.api import Api, running_api

ENTITIES, JOBS = "/api/v1/entities", "/api/v1/jobs"
HOST = "receiver.example"
queues: dict[str, QueueState | None] = {}


@pytest.fixture(scope="module")
def module_api(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    data_dir: Path = tmp_path_factory.mktemp("data")
    with running_api(database_url, data_dir, look=queues.get) as running:
        yield running


@pytest.fixture
def api(module_api: Api) -> Api:
    queues.clear()
    for table in ("jobs", "job_events", "breakers", "callback_endpoints"):
        rows(module_api, f"DELETE FROM {table}")  # noqa: S608
    return module_api


def rows(api: Api, query: str, **parameters: Any) -> list[Any]:
    with api.container.database.transaction() as connection:
        result = connection.execute(text(query), parameters)
        return list(result.all()) if result.returns_rows else []


def explained(api: Api, job_id: str, role: Role = Role.USER) -> Any:
    answer = api.request("GET", f"{JOBS}/{job_id}/explain", role=role)
    assert answer.status == 200, answer.body
    return answer.json


def submit(api: Api, method: str = "POST", path: str = ENTITIES, **headers: str) -> Any:
    answer = api.request(method, path, json_body={"name": "Ada"}, headers=headers)
    assert answer.status == 202, answer.body
    return answer.json


def faulty(api: Api, monkeypatch: pytest.MonkeyPatch) -> Applier:
    """An applier whose every attempt fails, to be tried again in an hour at most."""

    def broken(*_: Any) -> None:
        raise RuntimeError("with a secret")

    monkeypatch.setattr(api.container.registry["entities"].service, "check", broken)
    monkeypatch.setattr("random.random", lambda: 1.0)
    policy = RetryPolicy(base=timedelta(hours=1), cap=timedelta(hours=1))
    container = api.container
    return Applier(
        container.database, container.ledger, container.registry, container.users, container.views, policy
    )


def test_job_that_waits_for_a_worker(api: Api) -> None:
    queues["waybill.jobs"] = QueueState(messages=3, consumers=2)
    submit(api)
    told = explained(api, submit(api)["id"])
    assert told["lane"] == {"position": 1, "blocker": None}
    assert told["queue"] == {"name": "waybill.jobs", "messages": 3, "ahead": 1}
    assert told["workers"] == {"alive": 2}
    assert told["summary"] == "It is the next of its lane, and waits for a worker."
    assert [one["state"] for one in told["changes"]] == ["queued"]
    assert told["announcements"]["count"] == 0


def test_no_worker_and_no_broker_are_told_apart(api: Api) -> None:
    job = submit(api, **{"Waybill-Priority": "high"})["id"]
    assert explained(api, job)["workers"] == {"alive": None}
    queues["waybill.jobs.high"] = QueueState(messages=1, consumers=0)
    told = explained(api, job)
    assert (told["queue"]["name"], told["workers"]) == ("waybill.jobs.high", {"alive": 0})
    assert told["summary"] == "No worker consumes its queue."


def test_job_behind_a_retrying_one_names_its_blocker_and_when_it_goes_on(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    entity = api.create()["id"]
    head = submit(api, "PATCH", f"{ENTITIES}/{entity}")
    middle, last = (submit(api, "PATCH", f"{ENTITIES}/{entity}") for _ in range(2))
    faulty(api, monkeypatch).apply([UUID(head["id"])])
    told = explained(api, last["id"])
    assert told["lane"]["position"] == 3
    blocker = told["lane"]["blocker"]
    assert (blocker["id"], blocker["state"], blocker["attempt"]) == (head["id"], "retrying", 1)
    run_at = datetime.fromisoformat(blocker["runAt"])
    assert timedelta(minutes=55) < run_at - datetime.now(UTC) < timedelta(minutes=61)
    assert datetime.fromisoformat(told["estimate"]["finishedAt"]) >= run_at
    assert explained(api, middle["id"])["lane"]["position"] == 2
    own = explained(api, head["id"])
    assert [(one["attempt"], one["reason"]) for one in own["attempts"]] == [(1, "RuntimeError")]
    assert "RuntimeError" in own["summary"]
    assert "secret" not in str(own)


def test_announcements_of_the_sweep_are_counted_with_their_times(api: Api) -> None:
    job = submit(api)["id"]
    for _ in range(12):
        rows(api, "UPDATE jobs SET announce_at = now() - interval '1 s' WHERE id = :id", id=job)
        with api.container.database.transaction() as connection:
            assert api.container.ledger.due(connection, Priority.NORMAL, 10) == [UUID(job)]
    told = explained(api, job)["announcements"]
    assert (told["count"], len(told["latest"])) == (12, 10)
    assert told["latest"] == sorted(told["latest"])
    assert datetime.fromisoformat(told["next"]) > datetime.now(UTC)


def test_breaker_of_a_receiver_shows_its_next_probe(api: Api) -> None:
    user = api.users[Role.USER].id
    endpoint = new_id()
    rows(
        api,
        "INSERT INTO callback_endpoints (id, owner_id, url, secret) VALUES (:id, :owner, :url, 's')",
        id=endpoint,
        owner=user,
        url=f"https://{HOST}/hook",
    )
    job = submit(api, **{"Waybill-Callback": str(endpoint)})["id"]
    (closed,) = explained(api, job)["breakers"]
    assert (closed["state"], closed["nextProbe"]) == ("closed", None)
    now = datetime.now(UTC)
    for _ in range(THRESHOLD):
        with api.container.database.transaction() as connection:
            BreakerBoard(connection).record_failure(closed["dependency"], now)
    (opened,) = explained(api, job)["breakers"]
    assert (opened["state"], opened["failures"]) == ("open", THRESHOLD)
    assert datetime.fromisoformat(opened["nextProbe"]) > now


def test_estimate_follows_the_pace(api: Api) -> None:
    first = submit(api)["id"]
    assert explained(api, first)["estimate"] == {"finishedAt": None, "jobsPerSecond": None}
    api.apply(first)
    done = explained(api, first)
    assert (done["estimate"]["finishedAt"], done["lane"]["position"]) == (None, None)
    assert done["summary"] == "It has succeeded."
    waiting = explained(api, submit(api)["id"])["estimate"]
    assert waiting["jobsPerSecond"] > 0
    assert waiting["finishedAt"] is not None


def test_scheduled_job_waits_for_its_time(api: Api) -> None:
    job = submit(api, **{"Waybill-Run-At": "2099-01-01T00:00:00Z"})["id"]
    told = explained(api, job)
    assert (told["summary"], told["lane"]["position"]) == ("It waits for its time.", None)
    assert told["estimate"]["finishedAt"] == "2099-01-01T00:00:00Z"


def test_foreign_job_is_404_and_a_foreign_blocker_has_no_name(api: Api) -> None:
    entity = api.create()["id"]
    foreign = api.request(
        "PATCH", f"{ENTITIES}/{entity}", role=Role.ADMIN, json_body={"name": "by the admin"}
    ).json
    mine = submit(api, "PATCH", f"{ENTITIES}/{entity}")
    assert api.request("GET", f"{JOBS}/{foreign['id']}/explain").status == 404
    assert api.request("GET", f"{JOBS}/{new_id()}/explain").status == 404
    assert api.request("GET", f"{JOBS}/x/explain").status == 404
    assert api.request("GET", f"{JOBS}/{mine['id']}/explain?x=1").status == 400
    assert explained(api, mine["id"])["lane"]["blocker"]["id"] is None
    assert explained(api, mine["id"], Role.ADMIN)["lane"]["blocker"]["id"] == foreign["id"]
