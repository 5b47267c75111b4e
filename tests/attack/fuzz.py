"""Random requests: by schema (schemathesis), by a grammar of nasty values, as mutated bytes (Hypothesis)."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.attack.reply import MalformedReply
from tests.attack.target import ENTITIES, Target, Who

ROUND_EXAMPLES = 150
_WHO: tuple[Who | None, ...] = ("user", "other", "guest", "admin", None)
_numbers = st.one_of(
    st.sampled_from([0, -1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**400]),
    st.integers(),
    st.floats(),
)
_texts = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        ["", " ", "\x00", "a\x00b", "../..", "' OR 1=1--", "\ud800", "💥", "x" * 300, "${x}", "null"]
    ),
)
_values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), _numbers, _texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_texts, inner, max_size=4)),
    max_leaves=12,
)
_MEMBERS = (
    *("name", "description", "status", "metadata", "id", "version", "ownerId", "type", "value", "order"),
    *("email", "password", "role", "otp", "refreshToken", "url", "events"),
    *("operations", "reason", "patch", "dryRun"),
)
_HEADERS = (
    *("If-Match", "If-None-Match", "Prefer", "Idempotency-Key", "Waybill-Run-At", "Waybill-Expires-At"),
    *("Waybill-Priority", "Waybill-Callback", "X-Request-ID", "Content-Type", "Content-Encoding", "Accept"),
    *("traceparent", "Last-Event-ID", "X-Forwarded-For", "Range", "Origin", "Expect", "Upgrade", "Cookie"),
)
_members = st.sampled_from(_MEMBERS)
_header_names = st.sampled_from(_HEADERS)
_documents = st.one_of(st.dictionaries(st.one_of(_members, _texts), _values, max_size=6), _values)
_header_values = st.one_of(
    st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=60),
    st.sampled_from(
        ["", '"1"', "*", "wait=5000", "wait=0", "respond-async", "2030-01-01T00:00:00Z", "high", "1"]
    ),
)
_queries = st.lists(
    st.tuples(
        st.sampled_from(("limit", "cursor", "sort", "status", "q", "state", "minVersion", "resource", "x")),
        st.text(st.characters(codec="ascii", categories=("L", "N", "P")), max_size=30),
    ),
    max_size=3,
)


@dataclass(frozen=True)
class Property:
    """Something that must hold for whatever the strategy makes up."""

    name: str
    strategy: st.SearchStrategy[Any]
    check: Callable[[Any], None]


def properties(target: Target) -> tuple[Property, ...]:
    """The three sorts of random request, against this target."""
    return _by_grammar(target), _by_mutation(target), _by_schema(target)


def run(
    target: Target, first_seed: int, *, seconds: float, examples: int = ROUND_EXAMPLES
) -> tuple[int, list[str]]:
    """Fuzz round after round until the time is up; at least one round.

    Args:
        target: Attacked.
        first_seed: The same one sends the same requests.
        seconds: For how long.
        examples: Requests of each sort in a round.

    Returns:
        How many requests were sent, and what was wrong with answers, each in its simplest form.
    """
    deadline = time.monotonic() + seconds
    count, found, number = 0, [], first_seed
    sorts = properties(target)
    while True:
        for one in sorts:
            sent, fault = falsify(one, number, examples)
            count += sent
            found += [f"{one.name}: {fault} (--seed {number})"] if fault else []
        number += 1
        if time.monotonic() > deadline:
            return count, found


def falsify(one: Property, number: int, examples: int) -> tuple[int, str]:
    """How many examples were tried, and the simplest that breaks the property; empty where none does."""
    sent = 0

    def counted(value: Any) -> None:
        nonlocal sent
        sent += 1
        one.check(value)

    configured = settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    try:
        seed(number)(configured(given(one.strategy)(counted)))()
    except (AssertionError, MalformedReply, BaseExceptionGroup, OSError) as error:
        return sent, " | ".join(_reasons(error))
    return sent, ""


def _reasons(error: BaseException) -> list[str]:
    """What went wrong, also where it are several things at once."""
    if isinstance(error, BaseExceptionGroup):
        return [reason for one in error.exceptions for reason in _reasons(one)]
    return [f"{type(error).__name__}: {' '.join(str(error).split())[:1200]}"]


def _operations(target: Target) -> list[tuple[str, str]]:
    """Every method and path that OpenAPI names, ids filled in."""
    document = target.request("GET", "/openapi.json", who=None).json()
    return [(method.upper(), path) for path, item in document["paths"].items() for method in item]


def _by_grammar(target: Target) -> Property:
    """Valid HTTP with nasty values in every place: the contract's answer, never a 500."""
    identifiers = st.sampled_from(
        [*target.places.values(), "x", "%00", "018f3c1e-0000-7000-8000-000000000000"]
    )
    bodies = st.one_of(st.none(), _documents.map(_dumped), st.binary(max_size=200))
    requests = st.tuples(
        st.sampled_from(_operations(target)),
        identifiers,
        st.sampled_from(_WHO),
        _queries,
        st.lists(st.tuples(_header_names, _header_values), max_size=3),
        bodies,
    )

    def check(given: Any) -> None:
        (method, path), identifier, who, query, headers, body = given
        for name in ("{id}", "{entityId}", "{parentId}", "{relatedId}", "{entity_id}"):
            path = path.replace(name, identifier)
        text = "&".join(f"{name}={value}" for name, value in query)
        reply = target.request(
            method, f"{path}?{text}" if text else path, who=who, headers=headers, body=body
        )
        faults = list(reply.faults())
        assert not faults, f"{method} {path}?{text} {headers} {body!r}: {faults} {reply.body[:300]!r}"

    return Property("grammar", requests, check)


def _by_mutation(target: Target) -> Property:
    """Bytes of valid requests, cut, doubled and overwritten: an answer or a close, never a 500."""
    content = b'{"name":"a","metadata":{"x":[1,2,{"y":null}]}}'
    length = f"Content-Length: {len(content)}"
    kind = "Content-Type: application/json"
    valid = (
        target.head("POST", ENTITIES, kind, length, "Connection: close") + content,
        target.head("GET", f"{ENTITIES}?limit=5&sort=-name", "Connection: close"),
        target.head("POST", ENTITIES, kind, "Transfer-Encoding: chunked", "Connection: close")
        + b"5\r\n" + content[:5] + b"\r\n%x\r\n" % (len(content) - 5) + content[5:] + b"\r\n0\r\n\r\n",
    )  # fmt: skip
    edits = st.tuples(
        st.sampled_from(["overwrite", "insert", "delete", "double"]),
        st.floats(0, 1, exclude_max=True),
        st.one_of(
            st.binary(min_size=1, max_size=8),
            st.sampled_from([b"\r\n", b"\n", b"\r", b"\x00", b":", b" ", b"\t", b"0\r\n\r\n", b"\xff"]),
        ),
    )

    def check(given: Any) -> None:
        base, changes = given
        data = base
        for how, where, what in changes:
            at = int(where * len(data))
            after = at if how == "insert" else at + len(what)
            data = (
                data[:at]
                + (what if how in ("overwrite", "insert") else data[at:after] * 2 * (how == "double"))
                + data[after:]
            )
        end = b"\r\n\r\n" * 4  # where a length grew, the rest of the body never comes: end it
        reply = target.exchange(data + end + b"x" * 100, data.partition(b" ")[0].decode("latin-1"))
        faults = list(reply.faults())
        assert not faults, f"{data!r}: {faults}"

    return Property(
        "mutation", st.tuples(st.sampled_from(valid), st.lists(edits, min_size=1, max_size=4)), check
    )


def _by_schema(target: Target) -> Property:
    """What OpenAPI says of itself is true: statuses, headers, content types and bodies of the answers."""
    document = target.request("GET", "/openapi.json", who=None).json()
    schema = schemathesis.openapi.from_dict(document)
    cases = st.one_of([operation.ok().as_strategy() for operation in schema.get_all_operations()])

    def check(case: Any) -> None:
        (case.query or {}).pop("cursor", None)  # signed: no schema tells a right one
        url = f"http://127.0.0.1:{target.port}"
        token = {"Authorization": f"Bearer {target.tokens['user']}"}
        response = case.call(base_url=url, headers=token, timeout=40)
        try:
            case.validate_response(
                response,
                headers=token,
                transport_kwargs={"base_url": url},
                # What fits the schema may still be refused: a spent key, an address inside, a stale cursor.
                excluded_checks=[positive_data_acceptance],
            )
        except BaseExceptionGroup as group:
            raise AssertionError(
                f"{case.as_curl_command()} → {response.status_code} {response.text[:300]}: {_reasons(group)}"
            ) from None

    return Property("schema", cases, check)


def _dumped(document: Any) -> bytes:
    """As JSON, lone surrogates and non-finite numbers included."""
    return json.dumps(document).encode()
