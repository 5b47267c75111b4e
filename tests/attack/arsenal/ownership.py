"""Reaching for what is somebody else's, and doing what one's role may not."""

from collections.abc import Iterator

from tests.attack.attack import Attack, http
from tests.attack.target import ENTITIES

_ENTITY, _JOB = f"{ENTITIES}/{{foreign}}", "/api/v1/jobs/{foreign_job}"
_UNKNOWN = "018f3c1e-0000-7000-8000-000000000000"

_FOREIGN = (
    ("GET", _ENTITY, None),
    ("HEAD", _ENTITY, None),
    ("PUT", _ENTITY, {"name": "mine now"}),
    ("PATCH", _ENTITY, {"name": "mine now"}),
    ("DELETE", _ENTITY, None),
    ("GET", f"{_ENTITY}/related", None),
    ("POST", f"{_ENTITY}/related", {"type": "note", "value": 1}),
    ("GET", _JOB, None),
    ("GET", f"{_JOB}/result", None),
    ("GET", f"{_JOB}/events", None),
    ("GET", f"{_JOB}/explain", None),
    ("POST", f"{_JOB}/cancel", None),
    ("DELETE", f"/api/v1/callback-endpoints/{_UNKNOWN}", None),
    ("POST", f"/api/v1/callback-endpoints/{_UNKNOWN}/rotate", None),
    ("GET", f"/api/v1/callback-endpoints/{_UNKNOWN}/deliveries", None),
    ("POST", f"/api/v1/deliveries/{_UNKNOWN}/resend", None),
)
"""A user at what another one owns, or nobody: 404, never a hint that it exists."""

_FORBIDDEN = (
    ("guest", "POST", ENTITIES, {"name": "a"}),
    ("guest", "PATCH", _ENTITY, {"name": "a"}),
    ("guest", "DELETE", _ENTITY, None),
    ("user", "GET", "/api/v1/users", None),
    (
        "user",
        "POST",
        "/api/v1/users",
        {"email": "x@example.com", "password": "long enough for all", "role": "admin"},
    ),
    ("guest", "GET", "/api/v1/users", None),
    ("user", "POST", "/api/v1/jobs/{job}/redrive", {"reason": "x"}),
    ("user", "GET", "/api/v1/dead-letters", None),
    ("user", "POST", "/api/v1/dead-letters/redrive", {"reason": "x"}),
)
"""What is visible and forbidden, or no business of this role: 403."""


def attacks() -> Iterator[Attack]:
    """Each, with the answer that the contract has."""
    for method, path, document in _FOREIGN:
        yield http("ownership", f"{method} {path}", method, path, 404, json_body=document)
    for who, method, path, document in _FORBIDDEN:
        yield http("roles", f"{who}: {method} {path}", method, path, 403, who=who, json_body=document)
    for who in ("user", "guest"):
        path = "/api/v1/jobs/{foreign_job}/redrive"
        yield http(
            "roles",
            f"{who}: redrive a foreign job",
            "POST",
            path,
            (403, 404),
            who=who,
            json_body={"reason": "x"},
        )
