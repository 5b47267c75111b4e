"""Examples of bodies: made of their schemas, and of the errors themselves. A schema's own example wins."""

from collections.abc import Mapping
from typing import Any

from models.errors import (
    Conflict,
    Detail,
    Forbidden,
    Gone,
    Invalid,
    NotFound,
    PayloadTooLarge,
    PreconditionFailed,
    RateLimited,
    Refusal,
    Unauthorized,
    Unavailable,
    Unprocessable,
    UnsupportedMediaType,
    internal_problem,
)

Schemas = Mapping[str, Mapping[str, Any]]

ID = "019a9c5e-7b1e-7d30-8a52-3f1d6b1c2e4f"
TIME = "2026-11-28T12:00:00.000000Z"
REQUEST_ID = "8f14e45f-ceea-467f-9b1a-2d5c7e6f0a11"

JOB = {
    "id": ID,
    "state": "queued",
    "done": False,
    "operation": "create",
    "resource": "entities",
    "resourceId": "019a9c5e-7b1e-7d30-8a52-3f1d6b1c2e50",
    "attempt": 0,
    "priority": "normal",
    "createdAt": TIME,
    "runAt": None,
    "finishedAt": None,
    "expiresAt": None,
    "resultUrl": f"/api/v1/jobs/{ID}/result",
    "requestId": REQUEST_ID,
    "sequence": 17,
}

_REFUSALS: tuple[Refusal, ...] = (
    Invalid("The body does not fit the schema", details=[Detail("name", "Field required")]),
    Unauthorized("The access token is missing or not valid"),
    Forbidden("The role guest may not write entities"),
    NotFound("There is no such job"),
    Conflict("The status cannot go from ARCHIVED to ACTIVE; from ARCHIVED it can go to nothing: it is final"),
    Gone("The job expired before it was applied"),
    PreconditionFailed("The entity is at version 4", current_version=4),
    PayloadTooLarge("The body is over 256 KiB"),
    UnsupportedMediaType("Send application/json"),
    Unprocessable("This Idempotency-Key was used for another request"),
    RateLimited("Too many requests of this kind", retry_after=12),
    Unavailable("Too many jobs are open", retry_after=5),
)
PROBLEMS: dict[int, dict[str, Any]] = {
    **{one.status: one.problem(REQUEST_ID) for one in _REFUSALS},
    500: internal_problem(REQUEST_ID),
}
"""A problem for each status that a route may declare."""

_FORMATS = {"uuid": ID, "date-time": TIME, "date": TIME[:10], "email": "ada@example.org"}
_MEMBERS = {
    "checks": {"database": "ok"},
    "email": "ada@example.org",
    "name": "Ada's order",
    "resource": "entities",
    "url": "https://example.com/hooks/waybill",
}
"""What members of these names hold, where nothing else is said."""


def example_of(schema: Mapping[str, Any], schemas: Schemas, member: str = "") -> Any:
    """A value that fits ``schema``: its own example if it has one, else one of its required members.

    Args:
        schema: JSON Schema, as OpenAPI 3.1 has it.
        schemas: What its references name.
        member: The name under which it stands.
    """
    for given in ("examples", "enum"):
        if schema.get(given):
            return schema[given][0]
    if "const" in schema:
        return schema["const"]
    if "$ref" in schema:
        return example_of(schemas[schema["$ref"].rpartition("/")[2]], schemas, member)
    if "allOf" in schema:
        whole: dict[str, Any] = {}
        for one in (*schema["allOf"], {"type": "object", **_without(schema, "allOf")}):
            whole |= example_of(one, schemas)
        return whole
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            is_optional = {"type": "null"} in schema[choice]
            return None if is_optional else example_of(schema[choice][0], schemas, member)
    kind = schema.get("type", "object")
    if isinstance(kind, list):
        kind = "null" if "null" in kind else kind[0]
    if member in _MEMBERS:
        return _MEMBERS[member]
    if kind == "object":
        return _object(schema, schemas)
    if kind == "array":
        return [example_of(schema["items"], schemas)] * schema.get("minItems", 1) if "items" in schema else []
    if kind == "string":
        return _FORMATS.get(schema.get("format", ""), "text")
    plain = {"integer": schema.get("minimum", 1), "number": 1.5, "boolean": False, "null": None}
    return schema.get("default", plain[kind])


def _object(schema: Mapping[str, Any], schemas: Schemas) -> dict[str, Any]:
    required = schema.get("required", ())
    return {
        name: example_of(one, schemas, name)
        for name, one in schema.get("properties", {}).items()
        if name in required or one.get("examples")
    }


def _without(schema: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key != name}
