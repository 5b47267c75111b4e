"""Callback endpoints and their deliveries over HTTP: paged, limited, rotated, resent, recovered."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from models.identity.principals import Role
from models.ids import new_id
from tests.kit.api import Api, running_api

ENDPOINTS = "/api/v1/callback-endpoints"
MOST = 5


@pytest.fixture(scope="module")
def module_api(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    data_dir: Path = tmp_path_factory.mktemp("api")
    with running_api(database_url, data_dir, callback_endpoints_per_user=MOST) as made:
        yield made


@pytest.fixture
def api(module_api: Api) -> Api:
    rows(module_api, "DELETE FROM callback_endpoints")
    rows(module_api, "DELETE FROM deliveries")
    return module_api


def rows(api: Api, statement: str, **parameters: Any) -> list[Any]:
    with api.container.database.transaction() as connection:
        result = connection.execute(text(statement), parameters)
        return list(result.all()) if result.returns_rows else []


def registered(api: Api, **members: Any) -> Any:
    body = {"url": "https://receiver.example/hook", **members}
    made = api.request("POST", ENDPOINTS, json_body=body)
    assert made.status == 201, made.body
    return made.json


def called_back(api: Api, count: int = 1) -> tuple[Any, list[Any]]:
    """An endpoint, and its log after so many jobs."""
    endpoint = registered(api, events=["job.succeeded"])
    for _ in range(count):
        api.create()
    log = api.request("GET", f"{ENDPOINTS}/{endpoint['id']}/deliveries?limit=100")
    assert log.status == 200, log.body
    return endpoint, log.json["items"]


def snapshot(api: Api) -> list[Any]:
    return rows(api, "SELECT * FROM callback_endpoints ORDER BY id") + rows(
        api, "SELECT id, state, attempts, renewed_at FROM deliveries ORDER BY id"
    )


# ---- endpoints -----------------------------------------------------------------------------


def test_endpoints_are_listed_in_pages_oldest_first(api: Api) -> None:
    made = [registered(api)["id"] for _ in range(MOST)]
    seen: list[str] = []
    cursor = ""
    while len(seen) < MOST:
        page = api.request("GET", f"{ENDPOINTS}?limit=2{cursor}").json
        seen += [item["id"] for item in page["items"]]
        cursor = f"&cursor={page['nextCursor']}"
    assert (seen, page["nextCursor"]) == (made, None)
    foreign = api.request("GET", f"{ENDPOINTS}?limit=2").json["nextCursor"]
    assert api.request("GET", f"{ENDPOINTS}?cursor={foreign}", role=Role.ADMIN).status == 400
    for query in ("limit=0", "limit=101", "cursor=x", "nothing=1"):
        assert api.request("GET", f"{ENDPOINTS}?{query}").status == 400


def test_user_who_was_just_deleted_registers_nothing(api: Api) -> None:
    """For some seconds the API still takes the token."""
    with api.container.database.transaction() as connection:
        user = api.container.users.add(connection, f"{new_id()}@example.org", "none", Role.USER)
    token = api.container.tokens.issue(user)
    assert api.request("GET", ENDPOINTS, token=token).status == 200
    rows(api, "DELETE FROM users WHERE id = :id", id=user.id)
    body = {"url": "https://receiver.example/hook"}
    refused = api.request("POST", ENDPOINTS, token=token, json_body=body)
    assert (refused.status, refused.json["error"]) == (401, "Unauthorized")
    assert "www-authenticate" in refused.headers


def test_one_user_has_only_so_many(api: Api) -> None:
    for _ in range(MOST):
        last = registered(api)
    refused = api.request("POST", ENDPOINTS, json_body={"url": "https://receiver.example/hook"})
    assert (refused.status, refused.json["error"]) == (409, "Conflict")
    assert str(MOST) in refused.json["message"]
    assert api.request("DELETE", f"{ENDPOINTS}/{last['id']}").status == 204
    registered(api)


def test_rotation_tells_a_new_secret_once(api: Api) -> None:
    endpoint = registered(api)
    rotated = api.request("POST", f"{ENDPOINTS}/{endpoint['id']}/rotate")
    assert (rotated.status, rotated.headers["cache-control"]) == (200, "no-store")
    assert rotated.json["secret"].startswith("whsec_")
    assert rotated.json["secret"] != endpoint["secret"]
    assert "secret" not in api.request("GET", ENDPOINTS).json["items"][0]
    ((secret, previous, hours),) = rows(
        api,
        "SELECT secret, previous_secret, extract(epoch FROM previous_secret_until - now()) / 3600 "
        "FROM callback_endpoints",
    )
    assert "whsec_" not in secret + previous
    assert 23.9 < float(hours) <= 24


# ---- deliveries ----------------------------------------------------------------------------


def test_log_is_paged_newest_first_and_filtered(api: Api) -> None:
    endpoint, log = called_back(api, 3)
    path = f"{ENDPOINTS}/{endpoint['id']}/deliveries"
    assert [set(item) for item in log] == [{"id", "jobId", "state", "attempts"}] * 3
    assert [item["id"] for item in log] == sorted((item["id"] for item in log), reverse=True)
    first = api.request("GET", f"{path}?limit=2").json
    rest = api.request("GET", f"{path}?limit=2&cursor={first['nextCursor']}").json
    assert ([*first["items"], *rest["items"]], rest["nextCursor"]) == (log, None)
    rows(
        api,
        "UPDATE deliveries SET state = 'failed', attempts = 14, response_status = 500, error = 'no' "
        "WHERE id = :id",
        id=log[0]["id"],
    )
    (failed,) = api.request("GET", f"{path}?state=failed").json["items"]
    assert failed == {
        "id": log[0]["id"],
        "jobId": log[0]["jobId"],
        "state": "failed",
        "attempts": 14,
        "responseStatus": 500,
        "error": "no",
    }
    assert api.request("GET", f"{path}?state=lost").status == 400
    assert api.request("GET", f"{path}?state=failed&cursor={first['nextCursor']}").status == 400


def test_resend_is_due_now_and_announced(api: Api) -> None:
    _, (delivery,) = called_back(api)
    rows(api, "UPDATE deliveries SET state = 'delivered', attempts = 3, announce_at = NULL")
    api.announcer.delivered.clear()
    again = api.request("POST", f"/api/v1/deliveries/{delivery['id']}/resend")
    assert (again.status, again.json["state"], again.json["attempts"]) == (202, "pending", 0)
    assert [str(one) for one in api.announcer.delivered] == [delivery["id"]]
    assert rows(api, "SELECT announce_at <= now() FROM deliveries WHERE id = :id", id=delivery["id"]) == [
        (True,)
    ]


def test_resend_to_a_disabled_endpoint_is_409_until_it_is_recovered(api: Api) -> None:
    endpoint, (delivery,) = called_back(api)
    rows(api, "UPDATE callback_endpoints SET disabled = true, disabled_at = now()")
    rows(api, "UPDATE deliveries SET state = 'failed', announce_at = NULL WHERE kind = 'callback'")
    resend = f"/api/v1/deliveries/{delivery['id']}/resend"
    assert api.request("POST", resend).status == 409
    recovered = api.request("POST", f"{ENDPOINTS}/{endpoint['id']}/recover", json_body={})
    assert (recovered.status, recovered.json) == (202, {"recovered": 1})
    (listed,) = api.request("GET", ENDPOINTS).json["items"]
    assert (listed["disabled"], listed["disabledAt"], listed["disabledReason"]) == (False, None, None)
    assert api.request("POST", resend).status == 202


def test_recovery_from_a_time_on_leaves_out_what_was_missed_before(api: Api) -> None:
    endpoint = registered(api, events=["job.succeeded"])
    rows(api, "UPDATE callback_endpoints SET disabled = true, disabled_at = now()")
    api.create()
    ((since,),) = rows(api, "SELECT clock_timestamp()")
    api.create()
    recovered = api.request(
        "POST", f"{ENDPOINTS}/{endpoint['id']}/recover", json_body={"since": since.isoformat()}
    )
    assert (recovered.status, recovered.json) == (202, {"recovered": 1})


@pytest.mark.parametrize(
    "body",
    [
        b'{"since": "2999-01-01T00:00:00Z"}',
        b'{"since": "yesterday"}',
        b'{"since": "2026-01-01T00:00:00"}',
        b'{"since": 5}',
        b'{"until": "2026-01-01T00:00:00Z"}',
        b"[]",
        b"{",
        b'{"since": null, "since": null}',
    ],
)
def test_malformed_recovery_is_400_and_changes_nothing(api: Api, body: bytes) -> None:
    endpoint, _ = called_back(api)
    rows(api, "UPDATE callback_endpoints SET disabled = true")
    before = snapshot(api)
    assert api.request("POST", f"{ENDPOINTS}/{endpoint['id']}/recover", body=body).status == 400
    assert snapshot(api) == before


def test_recovery_needs_no_body(api: Api) -> None:
    endpoint, _ = called_back(api)
    path = f"{ENDPOINTS}/{endpoint['id']}/recover"
    assert api.request("POST", path).json == {"recovered": 0}
    assert api.request("POST", path, body=b"{}", headers={"Content-Type": "text/plain"}).status == 415
    assert api.request("POST", path, body=b" " * 2000).status == 413


# ---- what is not there, or somebody else's --------------------------------------------------


@pytest.mark.parametrize("whose", ["foreign", "unknown", "malformed"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", ENDPOINTS + "/{endpoint}/rotate"),
        ("POST", ENDPOINTS + "/{endpoint}/recover"),
        ("GET", ENDPOINTS + "/{endpoint}/deliveries"),
        ("DELETE", ENDPOINTS + "/{endpoint}"),
        ("POST", "/api/v1/deliveries/{delivery}/resend"),
    ],
)
def test_what_is_not_yours_is_404_and_left_as_it_is(api: Api, method: str, path: str, whose: str) -> None:
    endpoint, (delivery,) = called_back(api)
    before = snapshot(api)
    named = {"endpoint": endpoint["id"], "delivery": delivery["id"]}
    if whose != "foreign":
        named = dict.fromkeys(named, str(new_id()) if whose == "unknown" else "x")
    role = Role.ADMIN if whose == "foreign" else Role.USER
    answer = api.request(method, path.format(**named), role=role)
    assert (answer.status, answer.json["error"]) == (404, "NotFound")
    assert snapshot(api) == before
    on_record = rows(
        api,
        "SELECT action, subject, outcome, error ->> 'status' FROM audit WHERE request_id = :request",
        request=answer.headers["x-request-id"],
    )
    act = {"rotate": "endpoint.rotate", "recover": "endpoint.recover", "resend": "delivery.resend"}.get(
        path.rpartition("/")[2], "endpoint.remove"
    )
    subject = named["delivery" if act == "delivery.resend" else "endpoint"]
    assert on_record == ([] if method == "GET" else [(act, subject, "refused", "404")])


def test_endpoint_that_is_refused_is_on_record_without_its_url(api: Api) -> None:
    answer = api.request("POST", ENDPOINTS, json_body={"url": "https://s3cret@127.0.0.1/"})
    assert answer.status == 400
    (entry,) = rows(
        api,
        "SELECT action, subject, CAST(to_jsonb(audit) AS text) FROM audit WHERE request_id = :request",
        request=answer.headers["x-request-id"],
    )
    assert entry[:2] == ("endpoint.register", ENDPOINTS)
    assert "s3cret" not in entry[2]


def test_replies_and_events_are_not_resent_by_their_id(api: Api) -> None:
    called_back(api)
    ((events,),) = rows(api, "SELECT id FROM deliveries WHERE kind = 'events' LIMIT 1")
    assert api.request("POST", f"/api/v1/deliveries/{events}/resend", role=Role.ADMIN).status == 404


def test_metrics_tell_of_the_outbox(api: Api) -> None:
    called_back(api)
    exposed = api.request("GET", "/metrics", role=None).body.decode()
    assert 'waybill_deliveries_waiting{kind="callback",state="pending"} 1.0' in exposed
    assert "waybill_breakers_open 0.0" in exposed
    assert 'waybill_oldest_delivery_seconds{kind="callback"}' in exposed
