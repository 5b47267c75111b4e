"""Words for OpenAPI that several routes share: headers, query parameters, answers. No behaviour."""

from api_shim.web.router import Answer, JsonSchema, Parameter
from models.job import JobState, Operation, Priority

_UUID = {"type": "string", "format": "uuid"}
_TIME = {"type": "string", "format": "date-time"}


def header(name: str, description: str, schema: JsonSchema) -> Parameter:
    """A request header."""
    return Parameter(name, "header", description, schema)


def query(name: str, description: str, schema: JsonSchema) -> Parameter:
    """A query parameter."""
    return Parameter(name, "query", description, schema)


IF_MATCH = header(
    "If-Match",
    "The version that you have seen. An older one is refused with 412 at once; one that is stale when the "
    "job is applied fails the job with 412.",
    {"type": "string", "pattern": '^"(0|[1-9][0-9]{0,17})"$', "examples": ['"3"']},
)
IF_NONE_MATCH = header(
    "If-None-Match",
    "The ETag that you have seen. 304 while it is still the current one.",
    {"type": "string", "examples": ['"3"']},
)
LAST_EVENT_ID = header(
    "Last-Event-ID",
    "The `id` of the last event that you have seen: what came after it is sent. Without it the stream "
    "begins with the present state.",
    {"type": "string", "pattern": "^[0-9]{1,18}$", "examples": ["17"]},
)
PREFER = header(
    "Prefer",
    "`wait=N`: wait up to N seconds (0 to 30) for the outcome. `respond-async`: do not wait (the default).",
    {"type": "string", "examples": ["wait=10", "respond-async"]},
)
COMMON_WRITE_HEADERS = (
    header(
        "Idempotency-Key",
        "Names your request: sent again under the same key it is the same job.",
        {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"},
    ),
    PREFER,
    header("Waybill-Callback", "Callback endpoint (its id) that gets this job's outcome.", _UUID),
    header("Waybill-Run-At", "Apply the job not before this time.", _TIME),
    header("Waybill-Expires-At", "Apply the job not after this time; 400 if it has passed already.", _TIME),
    header(
        "Waybill-Priority",
        "Which of the queues it joins; each has its own workers.",
        {"type": "string", "enum": [str(one) for one in Priority], "default": "normal"},
    ),
    header("traceparent", "W3C Trace Context; ignored where malformed.", {"type": "string"}),
)
BULK_HEADERS = COMMON_WRITE_HEADERS


def write_headers(operation: Operation, *, has_version: bool) -> tuple[Parameter, ...]:
    """The headers of a write; without versions none can be demanded."""
    if operation is Operation.CREATE or not has_version:
        return COMMON_WRITE_HEADERS
    return (IF_MATCH, *COMMON_WRITE_HEADERS)


def write_errors(operation: Operation, *, has_parent: bool) -> tuple[int, ...]:
    """The statuses that a write may be refused with, now or by its outcome."""
    if operation is Operation.CREATE:
        return (*((404,) if has_parent else ()), 409, 410, 413, 415, 422)
    return (404, 409, 410, 412, 413, 415, 422)


def operation_id(verb: str, name: str) -> str:
    """How OpenAPI names an operation."""
    return f"{verb}_{name}".replace("-", "_").replace(" ", "_")


_ACCEPTED = Answer("Accepted: the job", "Job", ("Location", "Retry-After", "Idempotent-Replayed"))
_ON_OUTCOME = ("Preference-Applied", "Idempotent-Replayed")


def write_answers(operation: Operation, schema: str, *, has_version: bool) -> dict[int, Answer]:
    """The good answers to a write."""
    tag = ("ETag",) if has_version else ()
    if operation is Operation.CREATE:
        done = {201: Answer("Applied within `Prefer: wait`", schema, ("Location", *tag, *_ON_OUTCOME))}
    elif operation is Operation.DELETE:
        done = {204: Answer("Applied within `Prefer: wait`", None, _ON_OUTCOME)}
    else:
        done = {200: Answer("Applied within `Prefer: wait`", schema, (*tag, *_ON_OUTCOME))}
    return {202: _ACCEPTED, **done}


LIMIT = query("limit", "Items on a page.", {"type": "integer", "minimum": 1, "maximum": 100, "default": 20})
CURSOR = query(
    "cursor", "`nextCursor` of the page before, with the same other parameters.", {"type": "string"}
)
MIN_VERSION = query(
    "minVersion",
    "Read your write: answer only with this version or a later one. Waits under `Prefer: wait`, else 409.",
    {"type": "integer", "minimum": 1},
)
SEARCH = query(
    "q", "Case-insensitive, literal substring.", {"type": "string", "minLength": 1, "maxLength": 255}
)
JOB_STATE = query("state", "Only jobs in this state.", {"type": "string", "enum": [str(s) for s in JobState]})
JOB_RESOURCE = query("resource", "Only jobs on this resource.", {"type": "string", "maxLength": 63})
JOB_RESOURCE_ID = query("resourceId", "Only jobs on this instance.", _UUID)
JOB_CREATED_AFTER = query("createdAfter", "Only jobs accepted later than this time.", _TIME)
JOB_CREATED_BEFORE = query("createdBefore", "Only jobs accepted earlier than this time.", _TIME)
DELIVERY_STATE = query(
    "state",
    "Only deliveries in this state.",
    {"type": "string", "enum": ["pending", "retrying", "delivered", "failed"]},
)

RESPONSE_HEADERS: dict[str, str] = {
    "Location": "Where the job, or what was made, is found.",
    "Retry-After": "Whole seconds after which asking again makes sense.",
    "RateLimit": "What is left of the quota (`r`), and seconds until more of it is free (`t`).",
    "RateLimit-Policy": "The quota (`q`) and its window in seconds (`w`).",
    "ETag": "The version (of a job: the sequence of its last change) in quotes.",
    "Preference-Applied": "The `wait` that was honoured.",
    "Idempotent-Replayed": "`true` where this job was accepted earlier under the same Idempotency-Key.",
    "Cache-Control": "`no-store`.",
    "X-Request-ID": "The request's id: yours, or a fresh one where you sent none or a malformed one.",
    "WWW-Authenticate": "How to authenticate.",
    "Allow": "The methods that exist here.",
}
