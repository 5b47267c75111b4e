"""OpenAPI schemas of answers about dead letters that no model describes: pages and answers in place."""

from typing import Any

from api_shim.description.examples import JOB, PROBLEMS, TIME
from models.job import Operation

_TIME = {"type": "string", "format": "date-time"}
_MAYBE_TEXT = {"type": ["string", "null"]}


def letter_schemas(components: str) -> dict[str, Any]:
    """The schemas by name; ``components`` is what a reference to one begins with."""

    def any_of(*names: str) -> dict[str, Any]:
        return {"anyOf": [{"$ref": components + name} for name in names]}

    return {
        "DeadLetter": {
            "description": "A dead job, with the group of its error.",
            "allOf": [{"$ref": components + "Job"}],
            "required": ["group", "discardedAt"],
            "examples": [_DEAD_LETTER],
            "properties": {
                "group": {"type": "string"},
                "discardedAt": {"type": ["string", "null"], "format": "date-time"},
            },
        },
        "LetterGroup": _LETTER_GROUP,
        "DeadLetterPage": {
            "type": "object",
            "required": ["items", "nextCursor"],
            "properties": {
                "items": {"type": "array", "items": any_of("DeadLetter", "LetterGroup")},
                "nextCursor": {**_MAYBE_TEXT, "description": "null on the last page"},
            },
        },
        "RefusedInPlace": {
            "type": "object",
            "required": ["index", "error"],
            "properties": {
                "index": {"type": "integer", "description": "place of what is refused"},
                "error": {"$ref": components + "Problem"},
            },
        },
        "RedriveAnswer": {
            "type": "object",
            "required": ["jobs"],
            "properties": {
                "jobs": {"type": "array", "items": any_of("Job", "RedriveForeseen", "RefusedInPlace")},
                "remaining": {"type": "integer", "description": "more that the filter fits"},
            },
        },
    }


_DEAD_LETTER = JOB | {
    "state": "dead",
    "done": True,
    "attempt": 8,
    "finishedAt": TIME,
    "error": PROBLEMS[500],
    "group": "0f3a6c1d2b4e5f60",
    "discardedAt": None,
}
_LETTER_GROUP = {
    "type": "object",
    "description": "Dead letters of one resource and operation with the same error.",
    "required": [
        "group", "resource", "operation", "error", "message", "reason", "count", "oldest", "newest",
        "latestJobId",
    ],
    "properties": {
        "group": {"type": "string"},
        "resource": {"type": "string"},
        "operation": {"type": "string", "enum": [str(operation) for operation in Operation]},
        "error": _MAYBE_TEXT,
        "message": _MAYBE_TEXT,
        "reason": {**_MAYBE_TEXT, "description": "of the last attempt"},
        "count": {"type": "integer"},
        "oldest": _TIME,
        "newest": _TIME,
        "latestJobId": {"type": "string", "format": "uuid"},
    },
}  # fmt: skip
