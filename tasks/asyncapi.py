"""The AMQP contract as AsyncAPI 3.0, generated from the registry. Describes only; declares nothing.

It lives beside the topology, below both edges: the API serves it, the command line prints it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from models.deliveries.outbox import RESOLVED
from models.errors import PROBLEM_MEDIA_TYPE, Refusal
from models.job import FINAL, JobState, Operation, Priority
from models.registry import Registry
from models.resource_type import ResourceType
from tasks.names import DEAD_INTAKE, EVENTS, INTAKE

VERSION = "3.0.0"
_SCHEMAS = "#/components/schemas/"
_CLOUD_EVENT = "application/cloudevents+json"

_TEXT = {"type": "string"}
_UUID = {"type": "string", "format": "uuid"}
_TIME = {"type": "string", "format": "date-time"}
_OPTIONAL_TIME = {"type": ["string", "null"], "format": "date-time"}


def document(registry: Registry) -> dict[str, Any]:
    """The AsyncAPI document of every registered resource, ready for JSON.

    ``receive`` is what Waybill takes in, ``send`` what it publishes.
    """
    types = [resource.type for resource in registry]
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    messages: dict[str, Any] = {}
    schemas: dict[str, Any] = {"Job": _job(), "Problem": _problem(), "JobEvent": _job_event()}
    for resource in types:
        schemas |= _resource_schemas(resource)
        for operation in Operation:
            key = f"{resource.name}.{operation}"
            messages[key] = _request(resource, operation)
            channels[key] = _intake_channel(resource, operation)
            operations[key] = _intake_operation(key)
    messages |= _answers()
    channels |= _outgoing_channels([resource.name for resource in types])
    operations |= _outgoing_operations()
    return {
        "asyncapi": VERSION,
        "info": {
            "title": "Waybill",
            "version": "1",
            "description": _DESCRIPTION,
        },
        "defaultContentType": "application/json",
        "servers": {
            "rabbitmq": {
                "host": "{host}",
                "protocol": "amqp",
                "protocolVersion": "0.9.1",
                "variables": {"host": {"default": "127.0.0.1:5672", "description": "Your RabbitMQ."}},
            }
        },
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": schemas},
    }


_DESCRIPTION = (
    "Publish a request to the topic exchange `waybill.intake` under `{resource}.{operation}`. It is "
    "acknowledged once it is in the ledger; the same `message_id` is the same job. Answers go to `reply_to`. "
    "What cannot be taken goes to `waybill.dead` with header `x-waybill-reason`."
)


# ---- what is taken in ------------------------------------------------------------------


def _intake_channel(resource: ResourceType, operation: Operation) -> dict[str, Any]:
    key = f"{resource.name}.{operation}"
    return {
        "address": key,
        "title": f"{operation} {resource.name}",
        "messages": {key: _reference("messages", key)},
        "bindings": {"amqp": _routed(INTAKE, "topic")},
    }


def _intake_operation(key: str) -> dict[str, Any]:
    answers = [{"$ref": f"#/channels/replies/messages/{kind}"} for kind in _answer_kinds()]
    return {
        "action": "receive",
        "channel": {"$ref": f"#/channels/{key}"},
        "messages": [{"$ref": f"#/channels/{key}/messages/{key}"}],
        "bindings": {"amqp": {"ack": True, "bindingVersion": "0.3.0"}},
        "reply": {
            "address": {
                "location": "$message.header#/reply_to",
                "description": "The property `reply_to`: a queue of yours, by the default exchange.",
            },
            "channel": {"$ref": "#/channels/replies"},
            "messages": answers,
        },
    }


def _request(resource: ResourceType, operation: Operation) -> dict[str, Any]:
    schema = _BODIES.get(operation)
    message: dict[str, Any] = {
        "name": f"{resource.name}.{operation}",
        "title": f"Ask to {operation} one of {resource.name}",
        "description": (
            f"As plain JSON, or as a CloudEvent 1.0: structured (`{_CLOUD_EVENT}`), or binary with headers "
            "`cloudEvents_…`, `cloudEvents:…` or `ce-…`. At most 256 KiB, neither compressed nor encoded."
        ),
        "headers": _request_headers(resource, operation),
        "correlationId": {"location": "$message.header#/correlation_id"},
        "contentType": "application/json",
        "bindings": {"amqp": {"contentEncoding": "utf-8", "bindingVersion": "0.3.0"}},
    }
    if schema is None:
        message["description"] = "The body is empty."
    else:
        message["payload"] = {"$ref": f"{_SCHEMAS}{resource.name}.{schema}"}
    return message


_BODIES = {Operation.CREATE: "Create", Operation.REPLACE: "Update", Operation.PATCH: "Patch"}


def _request_headers(resource: ResourceType, operation: Operation) -> dict[str, Any]:
    """Properties (with ``_``) and headers (with ``-``), as AsyncAPI has them in one object."""
    needs_id = operation is not Operation.CREATE
    properties: dict[str, Any] = {
        "message_id": {**_TEXT, "minLength": 1, "maxLength": 255, "description": "The idempotency key."},
        "user_id": {**_TEXT, "description": "Your broker user; checked by the broker."},
        "authorization": {**_TEXT, "description": "`Bearer …`, in place of `user_id`."},
        "correlation_id": {**_TEXT, "description": "Echoed in every answer; else `message_id`."},
        "reply_to": {**_TEXT, "description": "A queue of yours, of a name that is answered to."},
        "expiration": {**_TEXT, "pattern": "^[0-9]+$", "description": "Milliseconds until it is too late."},
        "resource-id": {**_UUID, "description": "Which one." if needs_id else "Yours to choose."},
        "run-at": {**_TIME, "description": "Not before this time."},
        "traceparent": {**_TEXT, "description": "W3C trace context."},
    }
    required = ["message_id", *(["resource-id"] if needs_id else [])]
    if resource.parent is not None:
        properties["parent-id"] = {
            **_UUID,
            "description": f"Which of {resource.parent.resource} it is part of.",
        }
        required.append("parent-id")
    if needs_id and resource.has_version:
        properties["if-match"] = {
            "type": ["integer", "string"],
            "description": "The version that it must have.",
        }
    return {"type": "object", "required": required, "properties": properties}


# ---- what is published -----------------------------------------------------------------


def _outgoing_channels(resources: Iterable[str]) -> dict[str, Any]:
    kinds = {kind: _reference("messages", kind) for kind in _answer_kinds()}
    return {
        "replies": {
            "address": None,
            "description": "The queue that `reply_to` named, by the default exchange.",
            "messages": kinds,
        },
        "events": {
            "address": "{resource}.{operation}.{state}",
            "parameters": {
                "resource": {"enum": list(resources)},
                "operation": {"enum": [str(one) for one in Operation]},
                "state": {"enum": [*(str(one) for one in JobState), RESOLVED]},
            },
            "messages": {"job.event": _reference("messages", "job.event")},
            "bindings": {"amqp": _routed(EVENTS, "topic")},
        },
        "dead-letters": {
            "address": DEAD_INTAKE,
            "messages": {"dead-letter": _reference("messages", "dead-letter")},
            "bindings": {
                "amqp": {
                    "is": "queue",
                    "queue": {"name": DEAD_INTAKE, "durable": True, "exclusive": False, "autoDelete": False},
                    "bindingVersion": "0.3.0",
                }
            },
        },
    }


def _outgoing_operations() -> dict[str, Any]:
    return {
        name: {"action": "send", "channel": {"$ref": f"#/channels/{channel}"}}
        for name, channel in {
            "sendReply": "replies",
            "sendEvent": "events",
            "sendDeadLetter": "dead-letters",
        }.items()
    }


def _answer_kinds() -> list[str]:
    return ["job.accepted", "job.rejected", *(f"job.{state}" for state in JobState if state in FINAL)]


def _answers() -> dict[str, Any]:
    answers: dict[str, Any] = {}
    for kind in _answer_kinds():
        is_rejection = kind == "job.rejected"
        answers[kind] = {
            "name": kind,
            "title": "Why it was not taken" if is_rejection else "The job",
            "headers": _answer_headers(kind),
            "correlationId": {"location": "$message.header#/correlation_id"},
            "contentType": PROBLEM_MEDIA_TYPE if is_rejection else "application/json",
            "payload": {"$ref": _SCHEMAS + ("Problem" if is_rejection else "Job")},
            "bindings": {"amqp": {"messageType": kind, "bindingVersion": "0.3.0"}},
        }
    answers["job.event"] = {
        "name": "job.event",
        "title": "A job has a new state",
        "contentType": _CLOUD_EVENT,
        "payload": {"$ref": _SCHEMAS + "JobEvent"},
    }
    reason = {**_TEXT, "description": "Status, code and message."}
    answers["dead-letter"] = {
        "name": "dead-letter",
        "title": "A message that could not be taken, as it came",
        "headers": {
            "type": "object",
            "required": ["x-waybill-reason"],
            "properties": {"x-waybill-reason": reason, "x-waybill-routing-key": _TEXT},
        },
    }
    return answers


def _answer_headers(kind: str) -> dict[str, Any]:
    properties: dict[str, Any] = {"correlation_id": _TEXT, "type": {"const": kind}}
    if kind != "job.rejected":
        properties["x-job-id"] = _UUID
    return {"type": "object", "properties": properties}


# ---- schemas ---------------------------------------------------------------------------


def _resource_schemas(resource: ResourceType) -> dict[str, Any]:
    """The resource's bodies, with what they refer to under names of their own."""
    schemas = _schema_of(resource.create, f"{resource.name}.Create")
    update = _schema_of(resource.update, f"{resource.name}.Update")
    schemas |= update
    create = schemas[f"{resource.name}.Create"]
    own_id = {**_UUID, "description": "Yours to choose; else the platform does."}
    create["properties"] = {"id": own_id, **create.get("properties", {})}
    schemas[f"{resource.name}.Patch"] = _patch_of(update[f"{resource.name}.Update"])
    return schemas


def _schema_of(model: type[BaseModel], name: str) -> dict[str, Any]:
    schema = model.model_json_schema(by_alias=True, ref_template=f"{_SCHEMAS}{name}.{{model}}")
    definitions = schema.pop("$defs", {})
    return {name: schema, **{f"{name}.{key}": value for key, value in definitions.items()}}


def _patch_of(update: Mapping[str, Any]) -> dict[str, Any]:
    """A merge patch (RFC 7396): any of the members, null where one may be removed."""
    required = set(update.get("required", ()))
    properties = {}
    for member, schema in update.get("properties", {}).items():
        bare = {key: value for key, value in schema.items() if key != "default"}
        is_kept = member in required or bare.get("writeOnly") is True
        takes_null = is_kept or {"type": "null"} in bare.get("anyOf", ())
        properties[member] = bare if takes_null else {"anyOf": [bare, {"type": "null"}]}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _job() -> dict[str, Any]:
    properties: dict[str, Any] = {
        "id": _UUID,
        "state": {**_TEXT, "enum": [str(state) for state in JobState]},
        "done": {"type": "boolean"},
        "operation": {**_TEXT, "enum": [str(operation) for operation in Operation]},
        "resource": _TEXT,
        "resourceId": _UUID,
        "attempt": {"type": "integer"},
        "priority": {**_TEXT, "enum": [str(priority) for priority in Priority]},
        "createdAt": _TIME,
        "runAt": _OPTIONAL_TIME,
        "finishedAt": _OPTIONAL_TIME,
        "expiresAt": _OPTIONAL_TIME,
        "resultUrl": _TEXT,
        "requestId": _TEXT,
        "sequence": {"type": "integer"},
    }
    optional = {
        "version": {"type": "integer", "description": "The version that it made or read."},
        "result": {"type": "object", "description": "What a read found."},
        "error": {"$ref": _SCHEMAS + "Problem"},
        "attempts": {"type": "array", "items": {"type": "object"}, "description": "Those that failed."},
        "generation": {"type": "integer", "description": "Where it was redriven: 2 and more."},
    }
    return {"type": "object", "required": list(properties), "properties": properties | optional}


def _problem() -> dict[str, Any]:
    codes = [*(refusal.code for refusal in Refusal.__subclasses__()), "Internal"]
    required: dict[str, Any] = {
        "type": _TEXT,
        "title": _TEXT,
        "status": {"type": "integer"},
        "error": {**_TEXT, "enum": codes},
        "message": _TEXT,
        "requestId": {"type": ["string", "null"]},
    }
    detail = {
        "type": "object",
        "required": ["field", "reason"],
        "properties": {"field": _TEXT, "reason": _TEXT},
    }
    optional = {
        "details": {"type": "array", "items": detail},
        "retryAfter": {"type": "integer"},
        "currentVersion": {"type": "integer"},
    }
    return {
        "type": "object",
        "description": "RFC 9457, with the platform's own members.",
        "required": list(required),
        "properties": required | optional,
    }


def _job_event() -> dict[str, Any]:
    properties: dict[str, Any] = {
        "specversion": {"const": "1.0"},
        "id": _TEXT,
        "source": _TEXT,
        "type": {**_TEXT, "enum": [f"job.{word}" for word in (*JobState, RESOLVED)]},
        "subject": {**_UUID, "description": "The job's id."},
        "time": _TIME,
        "datacontenttype": {"const": "application/json"},
        "data": {"$ref": _SCHEMAS + "Job"},
    }
    resolution = {**_TEXT, "enum": ["redriven", "discarded"], "description": "Of a dead letter."}
    return {
        "type": "object",
        "required": list(properties),
        "properties": {**properties, "resolution": resolution},
    }


# ---- pieces ----------------------------------------------------------------------------


def _reference(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}


def _routed(exchange: str, kind: str) -> dict[str, Any]:
    return {
        "is": "routingKey",
        "exchange": {"name": exchange, "type": kind, "durable": True, "autoDelete": False, "vhost": "/"},
        "bindingVersion": "0.3.0",
    }
