"""Who may do what to whose: the whole table, at the door and again where the job is applied."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from models.identity.principals import Role
from models.ids import new_id
from tests.kit import notices
from tests.kit.api import Api, running_api

VERBS = ("list", "get", "create", "replace", "patch", "delete")
ALL, HIDDEN, SEEN, NOTHING = "all", "hidden", "seen", "nothing"
_READS = {"list": 200, "get": 200, "create": 403, "replace": 403, "patch": 403, "delete": 403}
_MEANINGS = {
    ALL: {"list": 200, "get": 200, "create": 202, "replace": 202, "patch": 202, "delete": 202},
    HIDDEN: {"list": 200, "get": 404, "create": 202, "replace": 404, "patch": 404, "delete": 404},
    SEEN: _READS,
    NOTHING: dict.fromkeys(VERBS, 403),
}
"""What a reach means for each verb: the status at the door."""

_OWN_ONLY = {(Role.USER, "own"): ALL, (Role.USER, "foreign"): HIDDEN}
_ADMIN = {(Role.ADMIN, "own"): ALL, (Role.ADMIN, "foreign"): ALL}
_GUEST = {(Role.GUEST, "own"): SEEN, (Role.GUEST, "foreign"): SEEN}
TABLE: dict[str, dict[tuple[Role, str], Any]] = {
    "entities": _ADMIN | _OWN_ONLY | _GUEST,
    "related": _ADMIN | _GUEST | {(Role.USER, "own"): ALL, (Role.USER, "foreign"): dict.fromkeys(VERBS, 404)},
    "users": _ADMIN | dict.fromkeys(product((Role.USER, Role.GUEST), ("own", "foreign")), NOTHING),
    "notices": {
        (Role.ADMIN, "own"): _READS | {"delete": 202},
        (Role.ADMIN, "foreign"): _READS | {"delete": 202},
        (Role.USER, "own"): ALL,
        (Role.USER, "foreign"): _READS | {"create": 202},
        (Role.GUEST, "own"): NOTHING,
        (Role.GUEST, "foreign"): NOTHING,
    },
}
CASES = [
    (resource, role, whose, verb)
    for resource, rows in TABLE.items()
    for (role, whose) in rows
    for verb in VERBS
]
BODIES: dict[str, Any] = {
    "entities": {"name": "x"},
    "related": {"type": "x", "value": 1},
    "users": {"email": "x@example.org", "role": "user"},
    "notices": {"name": "x"},
}
METHODS = {
    "list": "GET",
    "get": "GET",
    "create": "POST",
    "replace": "PUT",
    "patch": "PATCH",
    "delete": "DELETE",
}


@pytest.fixture(scope="module")
def api(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    data = Path(tmp_path_factory.mktemp("data"))
    with running_api(database_url, data, rate_limits="off", resources=("tests.kit.notices",)) as running:
        with running.container.database.transaction() as connection:
            notices.TABLE.create(connection, checkfirst=True)
        yield running


def expected(resource: str, role: Role, whose: str, verb: str) -> int:
    meaning = TABLE[resource][(role, whose)]
    statuses = meaning if isinstance(meaning, dict) else _MEANINGS[meaning]
    status: int = statuses[verb]
    return status


def instance_of(api: Api, resource: str, owner: Any) -> tuple[str, str]:
    """The collection and the path of an instance that belongs to ``owner``, whatever that one may do."""
    ids = {"id": new_id(), "owner": owner}
    with api.container.database.transaction() as connection:
        if resource == "users":
            return "/api/v1/users", f"/api/v1/users/{owner}"
        if resource == "notices":
            connection.execute(
                text("INSERT INTO notices (id, name, owner_id) VALUES (:id, 'n', :owner)"), ids
            )
            return "/api/v1/notices", f"/api/v1/notices/{ids['id']}"
        connection.execute(text("INSERT INTO entities (id, name, owner_id) VALUES (:id, 'n', :owner)"), ids)
        entity = f"/api/v1/entities/{ids['id']}"
        if resource == "entities":
            return "/api/v1/entities", entity
        part = {"part": new_id(), **ids}
        connection.execute(
            text(
                "INSERT INTO related_entities (id, entity_id, owner_id, type, value) "
                "VALUES (:part, :id, :owner, 'n', '1')"
            ),
            part,
        )
        return f"{entity}/related", f"{entity}/related/{part['part']}"


def target(api: Api, resource: str, role: Role, whose: str, verb: str) -> tuple[str, str, Any]:
    other = Role.USER if role is not Role.USER else Role.ADMIN
    collection, instance = instance_of(api, resource, api.users[role if whose == "own" else other].id)
    body = BODIES[resource] if verb in ("create", "replace", "patch") else None
    if resource == "users" and body is not None:
        body = {**body, "email": f"{new_id()}@example.org"}
        body |= {"password": "correct horse battery"} if verb == "create" else {}
    return METHODS[verb], collection if verb in ("list", "create") else instance, body


@pytest.mark.parametrize(("resource", "role", "whose", "verb"), CASES)
def test_door(api: Api, resource: str, role: Role, whose: str, verb: str) -> None:
    method, path, body = target(api, resource, role, whose, verb)
    answer = api.request(method, path, role=role, json_body=body)
    assert answer.status == expected(resource, role, whose, verb), answer.body
    if answer.status == 202:
        api.request("POST", f"/api/v1/jobs/{answer.json['id']}/cancel", role=role)


APPLIED = [
    (resource, role, whose, verb)
    for resource, role, whose, verb in CASES
    if verb in ("create", "replace", "patch", "delete") and resource != "users"
]


@pytest.mark.parametrize(("resource", "role", "whose", "verb"), APPLIED)
def test_applying_transaction_asks_again(api: Api, resource: str, role: Role, whose: str, verb: str) -> None:
    """The job is taken in while its owner is an admin with every right, and applied as what it is then."""
    method, path, body = target(api, resource, role, whose, verb)
    job = _accepted_as_if_allowed(api, resource, role, method, path, body)
    api.apply(job)
    done = api.request("GET", f"/api/v1/jobs/{job}", role=Role.ADMIN).json
    status = expected(resource, role, whose, verb)
    if status == 202:
        assert done["state"] == "succeeded", done
    else:
        assert (done["state"], done["error"]["status"]) == ("failed", status)


def _accepted_as_if_allowed(api: Api, resource: str, role: Role, method: str, path: str, body: Any) -> str:
    """A job that somebody allowed handed in, made over to the user of ``role`` before it is applied."""
    giver = Role.USER if resource == "notices" and method != "DELETE" else Role.ADMIN
    ids = {"to": api.users[giver].id, "to_user": api.users[role].id, "role": role}
    if resource == "notices" and method in ("PUT", "PATCH"):  # only an owner could hand it in
        place = {"id": path.rpartition("/")[2]}
        with api.container.database.transaction() as connection:
            owner = connection.execute(
                text("SELECT owner_id FROM notices WHERE id = :id"), place
            ).scalar_one()
            connection.execute(text("UPDATE notices SET owner_id = :to WHERE id = :id"), place | ids)
    answer = api.request(method, path, role=giver, json_body=body)
    assert answer.status == 202, answer.body
    with api.container.database.transaction() as connection:
        if resource == "notices" and method in ("PUT", "PATCH"):
            connection.execute(
                text("UPDATE notices SET owner_id = :owner WHERE id = :id"), place | {"owner": owner}
            )
        parameters = {"job": answer.json["id"], **ids}
        made_over = text("UPDATE jobs SET principal_id = :to_user, role = :role WHERE id = :job")
        connection.execute(made_over, parameters)
    return str(answer.json["id"])


@pytest.mark.parametrize("demoted_to", [Role.USER, Role.GUEST])
@pytest.mark.parametrize("resource", ["entities", "related", "users"])
def test_demotion_in_between_ends_the_job(api: Api, resource: str, demoted_to: Role) -> None:
    users, address = api.container.users, f"{new_id()}@example.org"
    with api.container.database.transaction() as connection:
        somebody = users.add(connection, address, "none", Role.ADMIN)
    token = api.container.tokens.issue(somebody)
    _, instance = instance_of(api, resource, api.users[Role.GUEST].id)
    body = {"role": "guest"} if resource == "users" else BODIES[resource]
    job = api.request("PATCH", instance, token=token, json_body=body).json["id"]
    with api.container.database.transaction() as connection:
        users.set_role(connection, address, demoted_to)
    api.apply(job)
    done = api.request("GET", f"/api/v1/jobs/{job}", role=Role.ADMIN).json
    assert (done["state"], done["error"]["status"]) == ("failed", 403)
