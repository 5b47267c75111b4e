"""Writes over HTTP as the contract's table has them, against a real server and a real PostgreSQL."""

import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from models.identity.principals import Role
from models.ids import new_id
from tests.kit.api import Api, running_api
from tests.kit.waiting import wait_until

ENTITIES = "/api/v1/entities"


@pytest.fixture(scope="module")
def api(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    data_dir: Path = tmp_path_factory.mktemp("data")
    with running_api(database_url, data_dir) as running:
        yield running


def _in(**delta: float) -> str:
    return (datetime.now(UTC) + timedelta(**delta)).isoformat().replace("+00:00", "Z")


def test_accepted_write_is_202_with_its_job(api: Api) -> None:
    answer = api.request(
        "POST", ENTITIES, json_body={"name": "Ada"}, headers={"X-Request-ID": "my-request.1"}
    )
    job = answer.json
    assert answer.status == 202
    assert answer.headers["location"] == f"/api/v1/jobs/{job['id']}"
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["x-request-id"] == job["requestId"] == "my-request.1"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "server" not in answer.headers
    assert (job["state"], job["done"], job["operation"], job["resource"]) == (
        "queued",
        False,
        "create",
        "entities",
    )
    assert (job["attempt"], job["priority"], job["runAt"], job["finishedAt"]) == (0, "normal", None, None)
    assert job["resultUrl"] == f"/api/v1/jobs/{job['id']}/result"
    assert {"version", "result", "error"}.isdisjoint(job)
    assert job["id"] in {str(one) for _, one in api.announcer.announced}


def test_waiting_create_is_201_as_from_a_synchronous_api(api: Api) -> None:
    with api.worker():
        answer = api.request(
            "POST", ENTITIES, json_body={"name": "Ada", "metadata": {"a": [1]}}, headers={"Prefer": "wait=10"}
        )
    entity = answer.json
    assert answer.status == 201
    assert answer.headers["location"] == f"{ENTITIES}/{entity['id']}"
    assert answer.headers["etag"] == '"1"'
    assert answer.headers["preference-applied"] == "wait=10"
    assert entity["ownerId"] == str(api.users[Role.USER].id)
    assert (entity["name"], entity["status"], entity["metadata"]) == ("Ada", "DRAFT", {"a": [1]})
    assert entity["version"] == 1


def test_waiting_replace_patch_and_delete(api: Api) -> None:
    entity = api.create()
    path, wait = f"{ENTITIES}/{entity['id']}", {"Prefer": "wait=10"}
    with api.worker():
        replaced = api.request("PUT", path, json_body={"name": "Grace"}, headers=wait)
        patched = api.request(
            "PATCH",
            path,
            body='{"description":"x"}',
            headers={**wait, "Content-Type": "application/merge-patch+json"},
        )
        deleted = api.request("DELETE", path, headers=wait)
    assert (replaced.status, replaced.json["name"], replaced.headers["etag"]) == (200, "Grace", '"2"')
    assert (patched.status, patched.json["description"], patched.headers["etag"]) == (200, "x", '"3"')
    assert (deleted.status, deleted.body) == (204, b"")
    assert "content-length" not in deleted.headers
    assert api.request("GET", path).status == 404


def test_wait_that_is_not_long_enough_is_202(api: Api) -> None:
    answer = api.request("POST", ENTITIES, json_body={"name": "Ada"}, headers={"Prefer": "wait=1"})
    assert (answer.status, answer.json["state"]) == (202, "queued")


def test_waiting_failure_is_the_jobs_problem_with_its_status(api: Api) -> None:
    entity = api.create()
    path = f"{ENTITIES}/{entity['id']}"
    with api.worker():
        answer = api.request(
            "PUT",
            path,
            json_body={"name": "x", "status": "INACTIVE"},
            headers={"Prefer": "wait=10", "X-Request-ID": "failing-one"},
        )
    assert answer.status == 409
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.json["error"], answer.json["requestId"]) == ("Conflict", "failing-one")
    assert answer.headers["preference-applied"] == "wait=10"


# ---- idempotency -----------------------------------------------------------------------


def test_same_key_and_request_is_the_same_job(api: Api) -> None:
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    first = api.request("POST", ENTITIES, json_body={"name": "Ada"}, headers=headers)
    again = api.request("POST", ENTITIES, json_body={"name": "Ada"}, headers=headers)
    assert (first.status, again.status) == (202, 202)
    assert first.json["id"] == again.json["id"]
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert [str(one) for _, one in api.announcer.announced].count(first.json["id"]) == 1


def test_replay_under_wait_is_the_outcome(api: Api) -> None:
    headers = {"Idempotency-Key": str(uuid.uuid4()), "Prefer": "wait=10"}
    with api.worker():
        first = api.request("POST", ENTITIES, json_body={"name": "Ada"}, headers=headers)
        again = api.request("POST", ENTITIES, json_body={"name": "Ada"}, headers=headers)
    assert (first.status, again.status) == (201, 201)
    assert first.json == again.json
    assert again.headers["idempotent-replayed"] == "true"


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ({"name": "Grace"}, {}),
        ({"name": "Ada"}, {"Waybill-Priority": "high"}),
        ({"name": "Ada"}, {"Waybill-Run-At": "2099-01-01T00:00:00Z"}),
    ],
)
def test_same_key_for_another_request_is_422(api: Api, body: Any, headers: dict[str, str]) -> None:
    key = {"Idempotency-Key": str(uuid.uuid4())}
    assert api.request("POST", ENTITIES, json_body={"name": "Ada"}, headers=key).status == 202
    for _ in range(2):
        answer = api.request("POST", ENTITIES, json_body=body, headers={**key, **headers})
        assert (answer.status, answer.json["error"]) == (422, "Unprocessable")


def test_same_key_of_another_principal_is_another_job(api: Api) -> None:
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    mine = api.request("POST", ENTITIES, json_body={"name": "Ada"}, headers=headers)
    theirs = api.request("POST", ENTITIES, json_body={"name": "Ada"}, headers=headers, role=Role.ADMIN)
    assert mine.json["id"] != theirs.json["id"]


def test_twenty_racing_duplicates_are_one_job(api: Api) -> None:
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    answers: list[Any] = []

    def send() -> None:
        answers.append(api.request("POST", ENTITIES, json_body={"name": "Ada"}, headers=headers))

    threads = [threading.Thread(target=send) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status for answer in answers} == {202}
    assert len({answer.json["id"] for answer in answers}) == 1
    assert sum("idempotent-replayed" in answer.headers for answer in answers) == 19


# ---- preconditions, ownership, roles ---------------------------------------------------


def test_stale_if_match_is_412_at_once_with_the_current_version(api: Api) -> None:
    entity = api.create()
    path = f"{ENTITIES}/{entity['id']}"
    job = api.request("PATCH", path, json_body={"name": "b"}, headers={"If-Match": '"1"'})
    api.apply(job.json["id"])
    answer = api.request("PATCH", path, json_body={"name": "c"}, headers={"If-Match": '"1"'})
    assert (answer.status, answer.json["error"], answer.json["currentVersion"]) == (
        412,
        "PreconditionFailed",
        2,
    )


def test_if_match_of_the_future_fails_when_it_is_applied(api: Api) -> None:
    entity = api.create()
    path = f"{ENTITIES}/{entity['id']}"
    job = api.request("PATCH", path, json_body={"name": "b"}, headers={"If-Match": '"9"'})
    assert job.status == 202
    api.apply(job.json["id"])
    polled = api.request("GET", job.headers["location"])
    assert (polled.json["state"], polled.json["error"]["status"]) == ("failed", 412)
    result = api.request("GET", job.json["resultUrl"], headers={"X-Request-ID": "asked-later"})
    assert (result.status, result.json["currentVersion"], result.json["requestId"]) == (412, 1, "asked-later")


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_write_to_a_foreign_or_unknown_instance_is_404(api: Api, method: str) -> None:
    foreign = api.create(role=Role.ADMIN)
    body = None if method == "DELETE" else {"name": "x"}
    for identifier in (foreign["id"], str(new_id()), "not-a-uuid"):
        answer = api.request(method, f"{ENTITIES}/{identifier}", json_body=body)
        assert (answer.status, answer.json["error"]) == (404, "NotFound")


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_admin_writes_what_others_own(api: Api, method: str) -> None:
    entity = api.create()
    body = None if method == "DELETE" else {"name": "x"}
    with api.worker():
        answer = api.request(
            method,
            f"{ENTITIES}/{entity['id']}",
            json_body=body,
            role=Role.ADMIN,
            headers={"Prefer": "wait=10"},
        )
    assert answer.status in (200, 204)


@pytest.mark.parametrize(
    ("method", "suffix"), [("POST", ""), ("PUT", "/x"), ("PATCH", "/x"), ("DELETE", "/x")]
)
def test_guest_may_not_write(api: Api, method: str, suffix: str) -> None:
    entity = api.create()
    path = ENTITIES + suffix.replace("x", entity["id"])
    body = None if method == "DELETE" else {"name": "x"}
    answer = api.request(method, path, json_body=body, role=Role.GUEST)
    assert (answer.status, answer.json["error"]) == (403, "Forbidden")


# ---- ids, schedule, expiry, priority, callback -----------------------------------------


def test_client_may_choose_the_id_once(api: Api) -> None:
    identifier = str(uuid.uuid4())
    with api.worker():
        first = api.request(
            "POST", ENTITIES, json_body={"id": identifier, "name": "a"}, headers={"Prefer": "wait=10"}
        )
        second = api.request(
            "POST", ENTITIES, json_body={"id": identifier, "name": "a"}, headers={"Prefer": "wait=10"}
        )
    assert (first.status, first.json["id"]) == (201, identifier)
    assert (second.status, second.json["error"]) == (409, "Conflict")


def test_write_to_an_instance_still_to_come_is_accepted(api: Api) -> None:
    created = api.request("POST", ENTITIES, json_body={"name": "a"})
    patched = api.request("PATCH", f"{ENTITIES}/{created.json['resourceId']}", json_body={"name": "b"})
    assert patched.status == 202
    api.apply(created.json["id"], patched.json["id"])
    assert api.request("GET", patched.json["resultUrl"]).json["name"] == "b"


def test_run_at_makes_a_scheduled_job_that_is_not_announced(api: Api) -> None:
    answer = api.request(
        "POST", ENTITIES, json_body={"name": "a"}, headers={"Waybill-Run-At": _in(minutes=2)}
    )
    assert (answer.status, answer.json["state"]) == (202, "scheduled")
    assert 100 <= int(answer.headers["retry-after"]) <= 120
    assert answer.json["id"] not in {str(one) for _, one in api.announcer.announced}


def test_expiry_in_the_past_is_400_and_before_run_at_is_accepted(api: Api) -> None:
    past = api.request(
        "POST", ENTITIES, json_body={"name": "a"}, headers={"Waybill-Expires-At": _in(seconds=-1)}
    )
    assert past.status == 400
    headers = {"Waybill-Expires-At": _in(minutes=1), "Waybill-Run-At": _in(minutes=2)}
    assert api.request("POST", ENTITIES, json_body={"name": "a"}, headers=headers).status == 202


@pytest.mark.parametrize("path", ["entities", "bulk"])
def test_request_sent_again_after_its_expiry_is_still_its_job(api: Api, path: str) -> None:
    body: dict[str, Any] = {"name": "a"}
    if path == "bulk":
        body = {"operations": [{"operation": "create", "resource": "entities", "data": body}]}

    def send(**headers: str) -> Any:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = api.request("POST", f"/api/v1/{path}", json_body=body, headers=sent)
        return answer.status, answer.json["jobs"][0] if path == "bulk" else answer.json

    soon = _in(seconds=3)
    key = f"late-{new_id()}"
    status, job = send(Idempotency_Key=key, Waybill_Expires_At=soon)
    assert status == 202
    wait_until(lambda: datetime.now(UTC) > datetime.fromisoformat(soon), timeout_seconds=10)
    assert send(Idempotency_Key=key, Waybill_Expires_At=soon)[1]["id"] == job["id"]
    _, refused = send(Idempotency_Key=f"{key}-2", Waybill_Expires_At=soon)
    assert (refused.get("error") if path == "bulk" else refused)["status"] == 400


@pytest.mark.parametrize("priority", ["high", "normal", "bulk"])
def test_priority_is_announced(api: Api, priority: str) -> None:
    answer = api.request("POST", ENTITIES, json_body={"name": "a"}, headers={"Waybill-Priority": priority})
    assert answer.json["priority"] == priority
    assert (priority, answer.json["id"]) in [(p, str(one)) for p, one in api.announcer.announced]


def test_callback_must_be_an_endpoint_of_ones_own(api: Api) -> None:
    own = api.request(
        "POST", "/api/v1/callback-endpoints", json_body={"url": "https://example.com/hook"}
    ).json["id"]
    foreign = api.request(
        "POST", "/api/v1/callback-endpoints", json_body={"url": "https://example.com/hook"}, role=Role.ADMIN
    ).json["id"]
    statuses = [
        api.request("POST", ENTITIES, json_body={"name": "a"}, headers={"Waybill-Callback": one}).status
        for one in (own, foreign, str(new_id()))
    ]
    assert statuses == [202, 400, 400]


@pytest.mark.parametrize(
    "header",
    [
        {"If-Match": '"1"'},
        {"Idempotency-Key": "ä".encode().decode("latin-1")},
        {"Idempotency-Key": "x" * 256},
        {"Prefer": "wait=31"},
        {"Prefer": "wait=soon"},
        {"Waybill-Run-At": "tomorrow"},
        {"Waybill-Expires-At": "2030-01-31"},
        {"Waybill-Priority": "urgent"},
        {"Waybill-Callback": "mine"},
    ],
)
def test_malformed_header_is_400(api: Api, header: dict[str, str]) -> None:
    answer = api.request("POST", ENTITIES, json_body={"name": "a"}, headers=header)
    assert (answer.status, answer.json["error"]) == (400, "Validation")


def test_many_at_once_are_each_answered_with_their_own(api: Api) -> None:
    answers: dict[int, Any] = {}

    def send(number: int) -> None:
        name = {"name": f"n{number}"} if number % 5 else {"name": ""}
        answers[number] = api.request("POST", ENTITIES, json_body=name, headers={"Prefer": "wait=10"})

    with api.worker():
        threads = [threading.Thread(target=send, args=(number,)) for number in range(60)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number, answer in answers.items():
        assert answer.status == (201 if number % 5 else 400)
        if number % 5:
            assert answer.json["name"] == f"n{number}"
