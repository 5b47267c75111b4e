"""Jobs over HTTP: polling, long-polling, results, cancelling, lists."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from models.errors import internal_problem
from models.identity.principals import Role
from models.ids import new_id
from models.job import JobState
from models.ledger import Outcome
from tests.kit.api import Api, now, running_api
from tests.kit.waiting import wait_until

ENTITIES, JOBS = "/api/v1/entities", "/api/v1/jobs"


@pytest.fixture(scope="module")
def api(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    data_dir: Path = tmp_path_factory.mktemp("data")
    with running_api(database_url, data_dir) as running:
        yield running


def _submit(api: Api, **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = api.request("POST", ENTITIES, json_body={"name": "Ada"}, headers=named)
    assert answer.status == 202
    return answer.json


def _finish(api: Api, job_id: str, state: JobState, error: Any = None) -> None:
    with api.container.database.transaction() as connection:
        outcome = Outcome(job_id=UUID(job_id), state=state, attempt=1, error=error)
        api.container.ledger.finish(connection, [outcome])


def _later(seconds: float, work: Any, *arguments: Any) -> None:
    threading.Timer(seconds, work, arguments).start()


# ---- polling ---------------------------------------------------------------------------


def test_poll_of_an_open_and_of_a_final_job(api: Api) -> None:
    job = _submit(api)
    before = api.request("GET", f"{JOBS}/{job['id']}")
    assert (before.status, before.json, before.headers["etag"]) == (200, job, f'"{job["sequence"]}"')
    assert (before.headers["retry-after"], before.headers["cache-control"]) == ("1", "no-store")
    api.apply(job["id"])
    after = api.request("GET", f"{JOBS}/{job['id']}")
    assert (after.json["state"], after.json["done"], after.json["version"]) == ("succeeded", True, 1)
    assert after.json["result"]["name"] == "Ada"
    assert after.json["sequence"] > job["sequence"]
    assert "retry-after" not in after.headers


def test_known_sequence_is_304(api: Api) -> None:
    job = _submit(api)
    known = {"If-None-Match": f'"{job["sequence"]}"'}
    assert api.request("GET", f"{JOBS}/{job['id']}", headers=known).status == 304
    api.apply(job["id"])
    assert api.request("GET", f"{JOBS}/{job['id']}", headers=known).status == 200


def test_failed_job_is_200_too(api: Api) -> None:
    job = _submit(api)
    _finish(api, job["id"], JobState.FAILED, {"status": 409, "error": "Conflict"})
    answer = api.request("GET", f"{JOBS}/{job['id']}")
    assert (answer.status, answer.json["state"], answer.json["error"]["status"]) == (200, "failed", 409)


@pytest.mark.parametrize("suffix", ["", "/result"])
def test_unknown_and_foreign_jobs_are_404_and_old_ones_410(api: Api, suffix: str) -> None:
    foreign = api.request("POST", ENTITIES, json_body={"name": "a"}, role=Role.ADMIN).json["id"]
    ancient = str(UUID(int=(1_500_000_000_000 << 80) | (7 << 76) | (2 << 62) | 1))
    future = "ffffffff-ffff-7fff-bfff-ffffffffffff"
    cases = {foreign: 404, str(new_id()): 404, "x": 404, future: 404, ancient: 410}
    found = {one: api.request("GET", f"{JOBS}/{one}{suffix}").status for one in cases}
    assert found == cases


def test_admin_sees_every_job(api: Api) -> None:
    assert api.request("GET", f"{JOBS}/{_submit(api)['id']}", role=Role.ADMIN).status == 200


# ---- long-polling ----------------------------------------------------------------------


def test_long_poll_comes_back_when_the_job_is_final(api: Api) -> None:
    job = _submit(api)
    _later(0.3, api.apply, job["id"])
    began = now()
    answer = api.request("GET", f"{JOBS}/{job['id']}", headers={"Prefer": "wait=20"})
    assert (answer.json["state"], answer.headers["preference-applied"]) == ("succeeded", "wait=20")
    assert now() - began < 15


def test_long_poll_with_a_known_sequence_comes_back_at_any_change(api: Api) -> None:
    job = _submit(api)

    def put_off() -> None:
        ledger = api.container.ledger
        with api.container.database.transaction() as connection:
            (work,) = [
                one
                for one in ledger.open_jobs(connection, _lanes(api, job["id"]), 9)
                if str(one.id) == job["id"]
            ]
            problem = internal_problem(None)
            ledger.retry_later(
                connection, work, attempt=1, delay=timedelta(minutes=2), error=problem, reason="a fault"
            )

    _later(0.3, put_off)
    headers = {"Prefer": "wait=20", "If-None-Match": f'"{job["sequence"]}"'}
    answer = api.request("GET", f"{JOBS}/{job['id']}", headers=headers)
    assert (answer.status, answer.json["state"]) == (200, "retrying")
    assert 100 < int(answer.headers["retry-after"]) <= 120


def _lanes(api: Api, job_id: str) -> list[int]:
    with api.container.database.transaction() as connection:
        return api.container.ledger.lock_lanes(connection, [UUID(job_id)])[0]


def test_long_poll_without_a_change_ends_in_time_with_304(api: Api) -> None:
    job = _submit(api)
    began = now()
    headers = {"Prefer": "wait=1", "If-None-Match": f'"{job["sequence"]}"'}
    answer = api.request("GET", f"{JOBS}/{job['id']}", headers=headers)
    assert (answer.status, answer.headers["retry-after"]) == (304, "1")
    assert 0.9 < now() - began < 5


def test_long_poll_that_knows_an_old_sequence_is_answered_at_once(api: Api) -> None:
    job = _submit(api)
    began = now()
    answer = api.request("GET", f"{JOBS}/{job['id']}", headers={"Prefer": "wait=20", "If-None-Match": '"0"'})
    assert (answer.status, answer.json["state"]) == (200, "queued")
    assert now() - began < 15


def test_many_waiters_are_all_woken(api: Api) -> None:
    jobs = [_submit(api)["id"] for _ in range(40)]
    states: list[str] = []

    def wait(job: str) -> None:
        states.append(api.request("GET", f"{JOBS}/{job}", headers={"Prefer": "wait=20"}).json["state"])

    threads = [threading.Thread(target=wait, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(api.edge.hub.watches) == len(jobs), what="everybody waits")
    api.apply(*jobs)
    for thread in threads:
        thread.join(timeout=15)
    assert states == ["succeeded"] * len(jobs)
    wait_until(lambda: not api.edge.hub.watches.is_wanted, what="nobody waits any more")


def test_waiter_is_woken_even_when_the_listening_connection_is_killed(api: Api) -> None:
    job = _submit(api)

    def kill_and_apply() -> None:
        with api.container.database.transaction() as connection:
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE query LIKE 'LISTEN%%' AND datname = current_database()"
            )
        api.apply(job["id"])

    _later(0.5, kill_and_apply)
    answer = api.request("GET", f"{JOBS}/{job['id']}", headers={"Prefer": "wait=20"})
    assert answer.json["state"] == "succeeded"


# ---- results ---------------------------------------------------------------------------


def test_result_says_what_a_synchronous_api_would_have_said(api: Api) -> None:
    job = _submit(api)
    early = api.request("GET", job["resultUrl"])
    assert (early.status, early.headers["location"]) == (202, f"{JOBS}/{job['id']}")
    api.apply(job["id"])
    created = api.request("GET", job["resultUrl"])
    entity = f"{ENTITIES}/{job['resourceId']}"
    assert (created.status, created.headers["location"], created.headers["etag"]) == (201, entity, '"1"')
    patched = api.request("PATCH", entity, json_body={"name": "b"}).json
    deleted = api.request("DELETE", entity).json
    api.apply(patched["id"], deleted["id"])
    assert api.request("GET", patched["resultUrl"]).status == 200
    assert api.request("GET", patched["resultUrl"]).json["name"] == "b"
    assert api.request("GET", deleted["resultUrl"]).status == 204
    assert api.request("GET", job["resultUrl"]).json["name"] == "Ada"


@pytest.mark.parametrize(
    ("state", "status", "error"),
    [
        (JobState.CANCELLED, 409, "Conflict"),
        (JobState.EXPIRED, 410, "Gone"),
        (JobState.DEAD, 500, "Internal"),
    ],
)
def test_result_of_what_was_never_applied(api: Api, state: JobState, status: int, error: str) -> None:
    job = _submit(api)
    _finish(api, job["id"], state)
    answer = api.request("GET", job["resultUrl"])
    assert (answer.status, answer.json["error"]) == (status, error)
    assert answer.json["requestId"] == answer.headers["x-request-id"]


# ---- cancel ----------------------------------------------------------------------------


def test_cancel_withdraws_once(api: Api) -> None:
    job = _submit(api)
    first = api.request("POST", f"{JOBS}/{job['id']}/cancel")
    again = api.request("POST", f"{JOBS}/{job['id']}/cancel")
    assert (first.status, first.json["state"], first.json["done"]) == (200, "cancelled", True)
    assert (again.status, again.json["error"]) == (409, "Conflict")
    api.apply(job["id"])
    assert api.request("GET", f"{ENTITIES}/{job['resourceId']}").status == 404


def test_cancellation_is_called_back(api: Api) -> None:
    url = "https://receiver.example/hook"
    endpoint = api.request("POST", "/api/v1/callback-endpoints", json_body={"url": url}).json["id"]
    job = _submit(api, Waybill_Callback=endpoint)
    api.request("POST", f"{JOBS}/{job['id']}/cancel")
    assert api.announcer.delivered


def test_scheduled_job_can_be_cancelled(api: Api) -> None:
    run_at = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    job = _submit(api, Waybill_Run_At=run_at)
    assert api.request("POST", f"{JOBS}/{job['id']}/cancel").json["state"] == "cancelled"


def test_cancel_is_for_the_owner_and_admins(api: Api) -> None:
    foreign = api.request("POST", ENTITIES, json_body={"name": "a"}, role=Role.ADMIN).json["id"]
    assert api.request("POST", f"{JOBS}/{foreign}/cancel").status == 404
    assert api.request("POST", f"{JOBS}/{new_id()}/cancel").status == 404
    assert api.request("POST", f"{JOBS}/{_submit(api)['id']}/cancel", role=Role.ADMIN).status == 200


# ---- lists -----------------------------------------------------------------------------


def test_list_is_newest_first_in_pages_and_filtered(api: Api) -> None:
    jobs = [_submit(api)["id"] for _ in range(5)]
    api.apply(jobs[0])
    seen: list[str] = []
    cursor = ""
    while len(seen) < 5:
        page = api.request("GET", f"{JOBS}?limit=2{cursor}").json
        seen += [item["id"] for item in page["items"]]
        cursor = f"&cursor={page['nextCursor']}"
    assert seen[:5] == jobs[::-1]
    done = api.request("GET", f"{JOBS}?state=succeeded&limit=1").json["items"]
    assert [item["id"] for item in done] == [jobs[0]]
    resource_id = done[0]["resourceId"]
    only = api.request("GET", f"{JOBS}?resource=entities&resourceId={resource_id}").json
    assert ([item["id"] for item in only["items"]], only["nextCursor"]) == ([jobs[0]], None)
    assert api.request("GET", f"{JOBS}?resource=nothing").json["items"] == []


def test_list_shows_own_jobs_and_admins_all(api: Api) -> None:
    mine = _submit(api)["id"]
    theirs = api.request("POST", ENTITIES, json_body={"name": "a"}, role=Role.ADMIN).json["id"]
    own = {item["id"] for item in api.request("GET", f"{JOBS}?limit=100").json["items"]}
    every = {item["id"] for item in api.request("GET", f"{JOBS}?limit=100", role=Role.ADMIN).json["items"]}
    assert mine in own
    assert theirs not in own
    assert {mine, theirs} <= every


@pytest.mark.parametrize(
    "query",
    [
        "state=done",
        "state=",
        "limit=0",
        "resourceId=x",
        "cursor=x",
        "resource=",
        "foo=1",
        "state=dead&state=dead",
    ],
)
def test_malformed_list_query_is_400(api: Api, query: str) -> None:
    assert api.request("GET", f"{JOBS}?{query}").status == 400
