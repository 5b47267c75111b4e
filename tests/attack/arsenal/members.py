"""Documents that are JSON and break the schema: wrong types, blank names, members not theirs to set."""

from collections.abc import Iterator
from typing import Any

from tests.attack.attack import Attack, http
from tests.attack.target import ENTITIES

_ID = "018f3c1e-0000-7000-8000-000000000000"

ENTITY: dict[str, Any] = {
    "no name": {"description": "x"},
    "name null": {"name": None},
    "name a number": {"name": 5},
    "name a boolean": {"name": True},
    "name an array": {"name": ["a"]},
    "name an object": {"name": {"$ne": ""}},
    "name empty": {"name": ""},
    "name blank": {"name": "   "},
    "name of wide blanks": {"name": "\u3000\u2003"},
    "name with a line feed": {"name": "a\nb"},
    "name with an escape": {"name": "a\x1b[2Jb"},
    "name with DEL": {"name": "a\x7f"},
    "name of 256": {"name": "x" * 256},
    "status unknown": {"name": "a", "status": "OPEN"},
    "status in lower case": {"name": "a", "status": "draft"},
    "status null": {"name": "a", "status": None},
    "created archived": {"name": "a", "status": "ARCHIVED"},
    "description a number": {"name": "a", "description": 1},
    "metadata an array": {"name": "a", "metadata": []},
    "metadata a string": {"name": "a", "metadata": "{}"},
    "id not a UUID": {"name": "a", "id": "x"},
    "id a number": {"name": "a", "id": 5},
    "id a path": {"name": "a", "id": "../../etc/passwd"},
}
_NOT_OF_A_PATCH = ("no name", "created archived", "status null")
"""Right in a patch: a null takes the member's default."""
MASS_ASSIGNMENT = ("version", "ownerId", "owner_id", "createdAt", "updatedAt", "role", "isAdmin", "__proto__")
_VALUES = {"version": 99, "role": "admin", "isAdmin": True, "__proto__": {"role": "admin"}}

ENDPOINT: dict[str, Any] = {
    "no url": {},
    "url a number": {"url": 5},
    "url of another scheme": {"url": "ftp://example.com/"},
    "a script": {"url": "javascript:alert(1)"},
    "a file": {"url": "file:///etc/passwd"},
    "a secret of one's own": {"url": "https://example.com/", "secret": "whsec_x"},
    "an unknown event": {"url": "https://example.com/", "events": ["job.unknown"]},
    "disabled at birth": {"url": "https://example.com/", "disabled": True},
    "a control character": {"url": "https://example.com/", "description": "a\x01"},
    "a line feed in the url": {"url": "https://example.com/\r\nX: y"},
    "a long url": {"url": "https://example.com/" + "x" * 10_000},
}
LOGIN: dict[str, Any] = {
    "empty": {},
    "no password": {"email": "user@example.com"},
    "email an object": {"email": {"$gt": ""}, "password": "x"},
    "password an array": {"email": "a@b.c", "password": ["x"]},
    "password empty": {"email": "a@b.c", "password": ""},
    "a long password": {"email": "a@b.c", "password": "x" * 5000},
    "role besides": {"email": "a@b.c", "password": "x", "role": "admin"},
}
USER: dict[str, Any] = {
    "no password": {"email": "x@example.com"},
    "an unknown role": {"email": "x@example.com", "password": "long enough for all", "role": "root"},
    "no email": {"password": "long enough for all"},
    "an email without @": {"email": "x", "password": "long enough for all"},
    "a short password": {"email": "x@example.com", "password": "x"},
    "the hash itself": {"email": "x@example.com", "password": "long enough for all", "passwordHash": "x"},
}
BULK: dict[str, Any] = {
    "no operations": {},
    "operations null": {"operations": None},
    "operations an object": {"operations": {}},
    "none": {"operations": []},
    "1,001": {"operations": [{"operation": "create", "resource": "entities", "data": {"name": "a"}}] * 1001},
    "another member": {"operations": [], "atomic": True},
}
BULK_ITEMS: tuple[Any, ...] = (
    None,
    5,
    "x",
    [],
    {},
    {"operation": "drop", "resource": "entities"},
    {"operation": "create", "resource": "pg_shadow", "data": {}},
    {"operation": "create", "resource": "entities", "data": []},
    {"operation": "patch", "resource": "entities", "data": {"name": "a"}},
    {"operation": "patch", "resource": "entities", "id": "x", "data": {"name": "a"}},
    {"operation": "patch", "resource": "entities", "id": _ID, "ifMatch": "1", "data": {"name": "a"}},
    {"operation": "create", "resource": "entities", "data": {"name": ""}},
    {"operation": "create", "resource": "entities", "data": {"name": "a"}, "owner": "x"},
    {"operation": "delete", "resource": "users", "id": _ID},
)


def attacks() -> Iterator[Attack]:
    """Every document at its door."""
    for name, document in ENTITY.items():
        yield http("members", f"create: {name}", "POST", ENTITIES, 400, json_body=document)
        if name not in _NOT_OF_A_PATCH:
            patch = {member: value for member, value in document.items() if member != "name" or value != "a"}
            path = f"{ENTITIES}/{{entity}}"
            yield http("members", f"patch: {name}", "PATCH", path, 400, json_body=patch)
    for member in MASS_ASSIGNMENT:
        value = _VALUES.get(member, _ID)
        for method, path in (
            ("POST", ENTITIES),
            ("PUT", f"{ENTITIES}/{{entity}}"),
            ("PATCH", f"{ENTITIES}/{{entity}}"),
        ):
            document = {"name": "a", member: value}
            yield http("mass assignment", f"{method} {member}", method, path, 400, json_body=document)
    for name, document in ENDPOINT.items():
        yield http(
            "members", f"endpoint: {name}", "POST", "/api/v1/callback-endpoints", 400, json_body=document
        )
    for name, document in LOGIN.items():
        yield http("members", f"login: {name}", "POST", "/auth/login", 400, who=None, json_body=document)
    for name, document in USER.items():
        yield http("members", f"users: {name}", "POST", "/api/v1/users", 400, who="admin", json_body=document)
    for name, document in BULK.items():
        yield http("members", f"bulk: {name}", "POST", "/api/v1/bulk", 400, json_body=document)
    for number, item in enumerate(BULK_ITEMS):
        yield _refused_item(number, item)


def _refused_item(number: int, item: Any) -> Attack:
    """A bulk whose one item is refused in its place, and nothing else happens."""
    attack = http(
        "bulk items", f"item {number}", "POST", "/api/v1/bulk", 202, json_body={"operations": [item]}
    )

    def send(target: Any) -> Any:
        reply = attack.send(target)
        if reply.status == 202:
            (place,) = reply.json()["jobs"]
            if set(place) != {"index", "error"} or place["error"]["status"] not in (400, 403, 404):
                raise AssertionError(f"taken: {place}")
        return reply

    return Attack(attack.kind, attack.name, send, attack.expected)
