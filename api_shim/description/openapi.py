"""OpenAPI 3.1, generated from the routes and the registry, and the page that shows it to people."""

import json
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from api_shim.description.dead_letters import letter_schemas
from api_shim.description.docs_page import page
from api_shim.description.examples import JOB, PROBLEMS, Schemas, example_of
from api_shim.description.words import RESPONSE_HEADERS
from api_shim.web.http import Request, Response, json_response
from api_shim.web.router import Answer, Described, Route
from models.errors import PROBLEM_MEDIA_TYPE, Refusal
from models.job import JobState, Operation, Priority
from models.registry import Registry
from tasks import asyncapi

VERSION = "3.1.0"
_COMPONENTS = "#/components/schemas/"

_UUID = {"type": "string", "format": "uuid"}
_TIME = {"type": "string", "format": "date-time"}
_OPTIONAL_TIME = {"type": ["string", "null"], "format": "date-time"}
_CODES = [*(refusal.code for refusal in Refusal.__subclasses__()), "Internal"]

_PROBLEM = {
    "type": "object",
    "description": "RFC 9457, with the platform's own members.",
    "required": ["type", "title", "status", "error", "message", "requestId"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "error": {"type": "string", "enum": _CODES},
        "message": {"type": "string"},
        "details": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "reason"],
                "properties": {"field": {"type": "string"}, "reason": {"type": "string"}},
            },
        },
        "requestId": {"type": ["string", "null"]},
        "retryAfter": {"type": "integer"},
        "currentVersion": {"type": "integer", "description": "with 412"},
        "reason": {"type": "string", "description": "`predecessorFailed`: the job ahead of it ended dead"},
        "predecessor": {**_UUID, "description": "that job, where it is yours"},
        "evidence": {
            "type": "array",
            "description": "of a job that killed its workers: worker, time, and signal where it was seen",
            "items": {"type": "object"},
        },
    },
}
_JOB = {
    "type": "object",
    "examples": [JOB],
    "required": [
        "id", "state", "done", "operation", "resource", "resourceId", "attempt", "priority", "createdAt",
        "runAt", "finishedAt", "expiresAt", "resultUrl", "requestId", "sequence",
    ],
    "properties": {
        "id": _UUID,
        "state": {"type": "string", "enum": [str(state) for state in JobState]},
        "done": {"type": "boolean", "description": "An outcome stands."},
        "operation": {"type": "string", "enum": [str(operation) for operation in Operation]},
        "resource": {"type": "string"},
        "resourceId": _UUID,
        "attempt": {"type": "integer"},
        "priority": {"type": "string", "enum": [str(priority) for priority in Priority]},
        "createdAt": _TIME,
        "runAt": _OPTIONAL_TIME,
        "finishedAt": _OPTIONAL_TIME,
        "expiresAt": _OPTIONAL_TIME,
        "version": {"type": "integer", "description": "The version of the instance that this job made."},
        "result": {"type": "object", "description": "The instance as this job left it."},
        "error": {"$ref": _COMPONENTS + "Problem"},
        "attempts": {
            "type": "array",
            "description": "Attempts that failed for a passing or unknown reason, where there were any.",
            "items": {
                "type": "object",
                "required": ["generation", "attempt", "at", "reason"],
                "properties": {
                    "generation": {"type": "integer"},
                    "attempt": {"type": "integer"},
                    "at": _TIME,
                    "reason": {"type": "string"},
                },
            },
        },
        "generation": {"type": "integer", "minimum": 2, "description": "Where it was redriven."},
        "resultUrl": {"type": "string"},
        "requestId": {"type": "string"},
        "sequence": {"type": "integer", "description": "Number of its last change; its ETag."},
    },
}  # fmt: skip
_BULK_ANSWER = {
    "type": "object",
    "required": ["jobs"],
    "properties": {
        "jobs": {
            "type": "array",
            "items": {
                "anyOf": [
                    {"$ref": _COMPONENTS + "Job"},
                    {"$ref": _COMPONENTS + "RefusedInPlace"},
                ]
            },
        }
    },
}
_PLAIN: dict[str, Any] = {
    "Problem": _PROBLEM,
    "Job": _JOB,
    "Instance": {
        "type": "object",
        "description": "An instance of any resource, by its read schema.",
        "examples": [{"id": JOB["resourceId"], "name": "Ada's order", "version": 1}],
    },
    "Text": {"type": "string"},
    "Events": {"type": "string", "examples": [f"id: 17\ndata: {json.dumps(JOB)}\n\n"]},
    "JwkSet": {
        "type": "object",
        "required": ["keys"],
        "examples": [{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "2026-11", "x": "11qYAYKx…"}]}],
        "properties": {"keys": {"type": "array", "items": {"type": "object"}}},
    },
    "Liveness": {"type": "object", "required": ["status"], "properties": {"status": {"const": "alive"}}},
    "Readiness": {
        "type": "object",
        "required": ["status", "checks"],
        "properties": {
            "status": {"const": "ready"},
            "checks": {"type": "object", "additionalProperties": {"type": "string"}},
        },
    },
    "OpenApi": {"type": "object"},
    "AsyncApi": {"type": "object"},
}
_HEADER_SCHEMAS = {"Retry-After": {"type": "integer"}}


class Documentation:
    """The document and the page, written once when the process starts.

    Args:
        registry: Whose schemas are described.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._json = b""
        self._page = b""
        self._asyncapi = json.dumps(asyncapi.document(registry), ensure_ascii=False).encode()

    async def document(self, request: Request) -> Response:
        """The document, for machines."""
        return json_response(200, self._json, (_CACHEABLE,))

    async def asyncapi(self, request: Request) -> Response:
        """The AMQP side, for machines."""
        return json_response(200, self._asyncapi, (_CACHEABLE,))

    async def docs(self, request: Request) -> Response:
        """The same, for people: one page that loads nothing from anywhere."""
        headers = [(b"content-type", b"text/html; charset=utf-8"), _CACHEABLE, _NOTHING_FOREIGN]
        return Response(200, self._page, headers)

    def routes(self, others: Sequence[Route]) -> Iterator[Route]:
        """The three routes; they describe ``others`` and themselves."""
        own = [
            Route(
                method="GET",
                path="/openapi.json",
                handle=self.document,
                operation_id="get_openapi",
                summary="This description",
                tag="documentation",
                is_public=True,
                answers={200: Answer("OpenAPI 3.1", "OpenApi", ("Cache-Control",))},
            ),
            Route(
                method="GET",
                path="/asyncapi.json",
                handle=self.asyncapi,
                operation_id="get_asyncapi",
                summary="A description of the AMQP side",
                tag="documentation",
                is_public=True,
                answers={200: Answer("AsyncAPI 3.0", "AsyncApi", ("Cache-Control",))},
            ),
            Route(
                method="GET",
                path="/docs",
                handle=self.docs,
                operation_id="get_docs",
                summary="This description, for people",
                tag="documentation",
                is_public=True,
                answers={200: Answer("A page", "Text", ("Cache-Control",), "text/html")},
            ),
        ]
        described = describe([*others, *own], self._registry)
        self._json = json.dumps(described, ensure_ascii=False).encode()
        self._page = page(described).encode()
        yield from own


_CACHEABLE = (b"cache-control", b"public, max-age=60")
_NOTHING_FOREIGN = (
    b"content-security-policy",
    b"default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'",
)


def describe(routes: Sequence[Route], registry: Registry) -> dict[str, Any]:
    """The OpenAPI document of ``routes``."""
    schemas = _schemas(routes, registry)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": VERSION,
        "info": {
            "title": "Waybill",
            "version": "1",
            "description": (
                "Every write becomes a job: taken in durably and in milliseconds, applied exactly once. "
                "Ask for it with `Prefer: wait=N` and the outcome is the answer, as from a synchronous API."
                "\n\nThe transitions of many jobs come over a WebSocket at `/api/v1/stream`. The first "
                'message, within 5 s, is `{"token": "<access token>"}`; then `{"subscribe": [job ids]}` '
                'begins with the present state of each, and `{"subscribe": "mine", "after": sequence}` '
                "with all that happened to your jobs after it (without `after`: from now on). "
                "Subscriptions add up. "
                'Frames are `{"sequence", "job"}` in the order of `sequence`; the highest one seen is the '
                "`after` to come back with. What is wrong is answered by a Problem. Close codes: 1003 not "
                "text, 1008 too many mistakes, 1009 over 64 KiB, 1012 restarting: come back, 1013 over "
                "capacity, 4400 malformed first message, 4401 no valid token (any more), 4408 no token in "
                "time, 4429 too many streams of one user."
            ),
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "examples": {f"Problem{status}": {"value": one} for status, one in PROBLEMS.items()},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def _operation(route: Route, schemas: Schemas) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.operation_id,
        "summary": route.summary,
        "tags": [route.tag],
        "parameters": [*_path_parameters(route), _REQUEST_ID, *_parameters(route)],
        "responses": _responses(route, schemas),
    }
    if route.permission is not None:
        operation["x-permission"] = route.permission
    if route.is_public:
        operation["security"] = []
    if route.body:
        content = {media: _content(one, schemas) for media, one in route.body.items()}
        operation["requestBody"] = {"required": not route.body_is_optional, "content": content}
    return operation


_REQUEST_ID = {
    "name": "X-Request-ID",
    "in": "header",
    "description": "Your name for this request, echoed. Replaced by a fresh UUID where malformed.",
    "schema": {"type": "string"},
}


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    names = [part[1:-1] for part in route.path.split("/") if part.startswith("{")]
    return [{"name": name, "in": "path", "required": True, "schema": _UUID} for name in names]


def _parameters(route: Route) -> list[dict[str, Any]]:
    return [
        {"name": one.name, "in": one.place, "description": one.description, "schema": dict(one.schema)}
        for one in route.parameters
    ]


def _responses(route: Route, schemas: Schemas) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    limited = () if route.limit is None else ("RateLimit", "RateLimit-Policy")
    for status, answer in sorted(route.answers.items()):
        responses[str(status)] = response = {
            "description": answer.description,
            "headers": _headers(*answer.headers, *limited, "X-Request-ID"),
        }
        if answer.schema is not None:
            response["content"] = {answer.media_type: _content(answer.schema, schemas)}
    of_gates = {*(() if route.is_public else (401, 403)), *(() if route.limit is None else (429,))}
    for status in sorted({400, 500, 503, *route.errors, *of_gates}):
        responses[str(status)] = {
            "description": HTTPStatus(status).phrase,
            "headers": _headers(*_ERROR_HEADERS.get(status, ()), *limited, "X-Request-ID"),
            "content": {
                PROBLEM_MEDIA_TYPE: {
                    "schema": {"$ref": _COMPONENTS + "Problem"},
                    "examples": {"problem": {"$ref": f"#/components/examples/Problem{status}"}},
                }
            },
        }
    return responses


_ERROR_HEADERS = {401: ("WWW-Authenticate",), 429: ("Retry-After",), 503: ("Retry-After",)}


def _headers(*names: str) -> dict[str, Any]:
    plain = {"type": "string"}
    return {
        name: {"description": RESPONSE_HEADERS[name], "schema": _HEADER_SCHEMAS.get(name, plain)}
        for name in names
    }


# ---- schemas ---------------------------------------------------------------------------


def _content(described: Described, schemas: Schemas) -> dict[str, Any]:
    schema = _reference(described)
    return {"schema": schema, "example": example_of(schema, schemas)}


def _reference(described: Described) -> dict[str, Any]:
    return {"$ref": _COMPONENTS + (described if isinstance(described, str) else described.__name__)}


def _schemas(routes: Sequence[Route], registry: Registry) -> dict[str, Any]:
    """Every component, under the names that routes use; the models that routes name among them."""
    schemas = dict(_PLAIN)
    for route in routes:
        for model in route.body.values():
            if not isinstance(model, str):
                _add(schemas, model.__name__, model, "validation")
        for answer in route.answers.values():
            if answer.schema is not None and not isinstance(answer.schema, str):
                _add(schemas, answer.schema.__name__, answer.schema, "serialization")
    schemas["JobPage"] = _page_of("Job")
    schemas["BulkAnswer"] = _BULK_ANSWER
    schemas |= letter_schemas(_COMPONENTS)
    for resource in registry:
        name = resource.type.name
        _add(schemas, f"{name}.Create", resource.type.create, "validation")
        _add(schemas, f"{name}.Update", resource.type.update, "validation")
        _add(schemas, f"{name}.Read", resource.type.read, "serialization")
        create = schemas[f"{name}.Create"]
        own_id = {**_UUID, "description": "Yours to choose; else the platform does."}
        create["properties"] = {"id": own_id, **create.get("properties", {})}
        schemas[f"{name}.Patch"] = _patch_of(schemas[f"{name}.Update"])
        schemas[f"{name}.Page"] = _page_of(f"{name}.Read")
    return schemas


def _add(schemas: dict[str, Any], name: str, model: type[BaseModel], mode: Any) -> None:
    """Put a model's schema under ``name``, and what it refers to beside it."""
    references, definitions = models_json_schema(
        [(model, mode)], by_alias=True, ref_template=_COMPONENTS + "{model}"
    )
    own = str(references[(model, mode)]["$ref"]).removeprefix(_COMPONENTS)
    for defined, schema in definitions["$defs"].items():
        schemas[name if defined == own else defined] = schema


def _patch_of(update: Mapping[str, Any]) -> dict[str, Any]:
    """A merge patch (RFC 7396): any of the members, null where one may be removed."""
    required = set(update.get("required", ()))
    properties = {}
    for member, schema in update.get("properties", {}).items():
        bare = {key: value for key, value in schema.items() if key != "default"}
        is_kept = member in required or bare.get("writeOnly") is True
        takes_null = is_kept or {"type": "null"} in bare.get("anyOf", ())
        properties[member] = bare if takes_null else {"anyOf": [bare, {"type": "null"}]}
    patch = {key: value for key, value in update.items() if key not in ("required", "properties", "title")}
    return {
        **patch,
        "description": "JSON Merge Patch (RFC 7396): what is given replaces, null removes.",
        "properties": properties,
    }


def _page_of(item: str) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["items", "nextCursor"],
        "properties": {
            "items": {"type": "array", "items": {"$ref": _COMPONENTS + item}},
            "nextCursor": {"type": ["string", "null"], "description": "null on the last page"},
        },
    }
