"""Users over HTTP: run by admins, their passwords nowhere to be seen, the last admin there to stay."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from models.errors import Conflict
from models.identity.principals import Role
from models.ids import new_id
from models.job import to_json
from tests.kit.api import PASSWORD, Answer, Api, running_api

WAIT = {"Prefer": "wait=20"}
USERS = "/api/v1/users"
SECRET = "a secret to be found nowhere"


@pytest.fixture(scope="module")
def api(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with (
        running_api(database_url, Path(tmp_path_factory.mktemp("data")), rate_limits="off") as running,
        running.worker(),
    ):
        yield running


def send(
    api: Api, method: str, path: str, body: Any = None, role: Role = Role.ADMIN, **headers: str
) -> Answer:
    return api.request(method, path, role=role, json_body=body, headers=WAIT | headers)


def email() -> str:
    return f"{new_id()}@example.org"


def made(api: Api, **members: Any) -> Any:
    answer = send(api, "POST", USERS, {"email": email(), "password": PASSWORD} | members)
    assert answer.status == 201, answer.body
    return answer.json


def log_in(api: Api, address: str, password: str) -> Answer:
    return api.request("POST", "/auth/login", role=None, json_body={"email": address, "password": password})


def everything_kept(api: Api) -> str:
    """Every row of every table, but for the users' own."""
    with api.container.database.snapshot() as connection:
        tables = connection.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = 'waybill'"))
        names = [row[0] for row in tables if row[0] != "users"]
        return "\n".join(
            row
            for name in names
            for row in connection.execute(text(f"SELECT t::text FROM {name} AS t")).scalars()  # noqa: S608
        )


def test_user_is_made_and_logs_in(api: Api) -> None:
    address = email()
    answer = send(api, "POST", USERS, {"email": address.upper(), "role": "guest", "password": PASSWORD})
    assert (answer.status, answer.headers["etag"]) == (201, '"1"')
    assert set(answer.json) == {"id", "email", "role", "version", "createdAt", "updatedAt"}
    assert (answer.json["email"], answer.json["role"]) == (address, "guest")
    assert answer.headers["location"] == f"{USERS}/{answer.json['id']}"
    assert log_in(api, address, PASSWORD).status == 200
    assert log_in(api, address, PASSWORD + "!").status == 401


def test_password_is_changed_kept_and_never_removed(api: Api) -> None:
    user = made(api)
    place = f"{USERS}/{user['id']}"
    changed = send(api, "PATCH", place, {"password": "quite another one"}, **{"If-Match": '"1"'})
    assert (changed.status, changed.json["version"]) == (200, 2)
    assert log_in(api, user["email"], PASSWORD).status == 401
    assert log_in(api, user["email"], "quite another one").status == 200
    kept = send(api, "PUT", place, {"email": user["email"], "role": "user"})
    assert kept.status == 200
    assert log_in(api, user["email"], "quite another one").status == 200
    assert send(api, "PATCH", place, {"password": None}).status == 400
    assert send(api, "PATCH", place, {"password": {"a": 1}}).status == 400


@pytest.mark.parametrize(
    ("members", "member"),
    [
        ({"password": "too short"}, "password"),
        ({"password": "x" * 257}, "password"),
        ({"password": "aaaabbbbccccdddd"}, "password"),
        ({"password": "with\ttabs\tinside"}, "password"),
        ({"password": 123456789012}, "password"),
        ({"password": None}, "password"),
        ({"email": "nobody"}, "email"),
        ({"email": "a b@example.org"}, "email"),
        ({"email": "a@" + "x" * 253}, "email"),
        ({"role": "root"}, "role"),
        ({"role": None}, "role"),
        ({"isDisabled": True}, "isDisabled"),
        ({"passwordHash": "$argon2id$"}, "passwordHash"),
        ({"tokensValidFrom": "2026-01-01T00:00:00Z"}, "tokensValidFrom"),
        ({"ownerId": str(new_id())}, "ownerId"),
    ],
)
def test_body_that_does_not_fit_is_refused_without_an_echo(api: Api, members: Any, member: str) -> None:
    answer = send(api, "POST", USERS, {"email": email(), "password": PASSWORD} | members)
    assert (answer.status, [one["field"] for one in answer.json["details"]]) == (400, [member])
    given = members.get("password")
    assert not isinstance(given, str) or given.encode() not in answer.body


def test_neither_password_nor_hash_is_kept_in_or_told_by_the_ledger(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    address = email()
    jobs = [
        api.request("POST", USERS, role=Role.ADMIN, json_body={"email": address, "password": SECRET}).json
    ]
    done = send(api, "GET", f"/api/v1/jobs/{jobs[0]['id']}").json
    place = f"{USERS}/{done['resourceId']}"
    key = {"Idempotency-Key": str(new_id())}
    answers = [
        send(api, "PATCH", place, {"password": SECRET + "2"}, **key),
        send(api, "PATCH", place, {"password": SECRET + "2"}, **key),
        send(api, "GET", place),
        send(api, "GET", USERS + "?limit=100"),
        send(api, "GET", "/api/v1/jobs?resource=users"),
        send(api, "GET", done["resultUrl"]),
    ]
    bulk = {"operation": "create", "resource": "users", "data": {"email": email(), "password": SECRET + "3"}}
    answers.append(send(api, "POST", "/api/v1/bulk", {"operations": [bulk]}))
    assert answers[-1].json["jobs"][0]["state"] == "succeeded"
    assert log_in(api, address, SECRET + "2").status == 200

    told = "".join(one.body.decode() for one in answers) + to_json(done).decode() + caplog.text
    kept = everything_kept(api)
    assert address in kept, "the search finds what is there"
    for place_of_it in (told, kept):
        assert SECRET not in place_of_it
        assert "argon2" not in place_of_it


def test_sealed_hash_that_is_sent_in_is_a_password_like_any_other(api: Api) -> None:
    one = made(api)
    service = api.container.registry["users"].service
    sealed = json.loads(service.secured(to_json({"password": SECRET}), new_id()))["password"]
    answer = send(api, "PATCH", f"{USERS}/{one['id']}", {"password": sealed})
    assert answer.status == 200
    assert log_in(api, one["email"], SECRET).status == 401
    assert log_in(api, one["email"], sealed).status == 200


def test_email_is_unique_at_creation_and_change(api: Api) -> None:
    one, other = made(api), made(api)
    again = send(api, "POST", USERS, {"email": one["email"].upper(), "password": PASSWORD})
    assert (again.status, again.json["error"]) == (409, "Conflict")
    moved = send(api, "PATCH", f"{USERS}/{other['id']}", {"email": one["email"]})
    assert (moved.status, moved.json["error"]) == (409, "Conflict")
    assert send(api, "GET", f"{USERS}/{other['id']}").json["email"] == other["email"]


@pytest.mark.parametrize("role", [Role.USER, Role.GUEST])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_nobody_but_admins_gets_in(api: Api, role: Role, method: str) -> None:
    own = f"{USERS}/{api.users[role].id}"
    path = USERS if method == "POST" else own
    body = None if method in ("GET", "DELETE") else {"email": email(), "password": PASSWORD, "role": "admin"}
    assert send(api, method, path, body, role).status == 403
    assert send(api, "GET", USERS, role=role).status == 403
    assert send(api, "GET", f"{USERS}/{new_id()}", role=role).status == 403
    operation = {"operation": "delete", "resource": "users", "id": str(api.users[role].id)}
    jobs = send(api, "POST", "/api/v1/bulk", {"operations": [operation]}, role).json["jobs"]
    assert jobs[0]["error"]["status"] == 403


def test_last_admin_cannot_go(api: Api) -> None:
    place = f"{USERS}/{api.users[Role.ADMIN].id}"
    others = [
        one["id"] for one in send(api, "GET", USERS + "?limit=100").json["items"] if one["role"] == "admin"
    ]
    assert others == [str(api.users[Role.ADMIN].id)]
    for answer in (send(api, "PATCH", place, {"role": "user"}), send(api, "DELETE", place)):
        assert (answer.status, answer.json["error"]) == (409, "Conflict")
        assert "last admin" in answer.json["message"]
    with pytest.raises(Conflict, match="last admin"), api.container.database.transaction() as connection:
        api.container.users.set_role(connection, api.users[Role.ADMIN].email, Role.USER)
    with pytest.raises(Conflict, match="last admin"), api.container.database.transaction() as connection:
        api.container.users.set_disabled(connection, api.users[Role.ADMIN].email, is_disabled=True)


def test_admins_who_demote_each_other_at_once_leave_one(api: Api) -> None:
    database, users = api.container.database, api.container.users
    second = made(api, role="admin")
    addresses = [api.users[Role.ADMIN].email, second["email"]]
    both_demoted = threading.Barrier(2)
    refused: list[str] = []

    def demote(address: str) -> None:
        try:
            with database.transaction() as connection:
                connection.execute(text("SELECT 1"))
                both_demoted.wait(10)
                users.set_role(connection, address, Role.USER)
        except Conflict:
            refused.append(address)

    threads = [threading.Thread(target=demote, args=(one,)) for one in addresses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(refused) == 1
    with database.transaction() as connection:
        assert users.has_admin(connection)
        users.set_role(connection, addresses[0], Role.ADMIN)
        users.set_role(connection, second["email"], Role.USER)


def test_other_password_or_role_withdraws_tokens_and_another_email_does_not(api: Api) -> None:
    def valid_from(user: Any) -> Any:
        with api.container.database.snapshot() as connection:
            query = text("SELECT tokens_valid_from FROM users WHERE id = :id")
            return connection.execute(query, {"id": user["id"]}).scalar_one()

    user = made(api)
    moments = [valid_from(user)]
    for change in ({"email": email()}, {"role": "guest"}, {"password": "quite another one"}):
        assert send(api, "PATCH", f"{USERS}/{user['id']}", change).status == 200
        moments.append(valid_from(user))
    assert moments[0] == moments[1] < moments[2] < moments[3]


def test_deleted_user_leaves_what_it_owns_and_its_open_jobs_fail(api: Api) -> None:
    user = made(api)
    token = log_in(api, user["email"], PASSWORD).json["accessToken"]
    thing = api.request(
        "POST", "/api/v1/entities", token=token, json_body={"name": "left"}, headers=WAIT
    ).json
    later = {"Waybill-Run-At": "2099-01-01T00:00:00Z"}
    job = api.request("POST", "/api/v1/entities", token=token, json_body={"name": "x"}, headers=later).json
    assert send(api, "DELETE", f"{USERS}/{user['id']}").status == 204
    assert log_in(api, user["email"], PASSWORD).status == 401
    assert send(api, "GET", f"/api/v1/entities/{thing['id']}").json["ownerId"] == user["id"]
    with api.container.database.transaction() as connection:
        connection.execute(text("UPDATE jobs SET state = 'queued' WHERE id = :id"), {"id": job["id"]})
    api.apply(job["id"])
    failed = send(api, "GET", f"/api/v1/jobs/{job['id']}").json
    assert (failed["state"], failed["error"]["status"]) == ("failed", 403)

    again = made(api, id=user["id"], email=user["email"])
    assert again["version"] == 3
    token = log_in(api, user["email"], PASSWORD).json["accessToken"]
    assert api.request("GET", f"/api/v1/entities/{thing['id']}", token=token).status == 200


def test_list_is_searched_by_email_and_sorted(api: Api) -> None:
    mark = str(new_id())
    for letter in "bca":
        made(api, email=f"{letter}-{mark}@example.org")
    found = send(api, "GET", f"{USERS}?q={mark.upper()}&sort=-email").json["items"]
    assert [one["email"][0] for one in found] == ["c", "b", "a"]


def test_bulk_takes_only_so_many_passwords(api: Api) -> None:
    operation = {"operation": "patch", "resource": "users", "id": str(new_id()), "data": {"role": "user"}}
    jobs = send(api, "POST", "/api/v1/bulk", {"operations": [operation] * 21}).json["jobs"]
    assert [one["error"]["status"] for one in jobs] == [404] * 20 + [400]
