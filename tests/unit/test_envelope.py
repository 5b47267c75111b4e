"""What the envelope of an upstream message may say, and that anything else is a refusal and no crash."""

import base64
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers import envelope, replies
from consumers.envelope import Arrival, Envelope
from consumers.frames import UNREADABLE
from models.errors import Refusal
from models.job import Operation, to_json

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ID = "0190a000-0000-7000-8000-000000000000"
EVENT = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}
STRUCTURED = "application/cloudevents+json"
KEY = b"k" * 32


def arrival(
    routing_key: str = "entities.create",
    body: bytes = b'{"name":"a"}',
    *,
    headers: dict[Any, Any] | None = None,
    **properties: Any,
) -> Arrival:
    given: dict[str, Any] = {"message_id": "m-1", "content_type": "application/json"}
    given |= properties
    kept = {name: value for name, value in given.items() if value is not None}
    return Arrival(routing_key=routing_key, body=body, properties=kept, headers=headers or {}, arrived_at=NOW)


def patch(**headers: Any) -> Arrival:
    spelled = {name.replace("_", "-"): value for name, value in headers.items()}
    return arrival("entities.patch", headers={"resource-id": ID, **spelled})


def event(data: Any = None, **members: Any) -> bytes:
    document = EVENT | members | ({} if data is None else {"data": data})
    return json.dumps({name: value for name, value in document.items() if value != "-"}).encode()


def read(message: Arrival) -> Envelope:
    return envelope.read(message)


def status_of(message: Arrival) -> int:
    with pytest.raises(Refusal) as caught:
        read(message)
    return caught.value.status


# ---- what it says ----------------------------------------------------------------------


def test_plain_json_is_read_as_it_stands() -> None:
    asked = read(arrival(reply_to="replies", correlation_id="c"))

    assert asked == Envelope(
        message_id="m-1",
        resource="entities",
        operation=Operation.CREATE,
        resource_id=None,
        data=b'{"name":"a"}',
        reply_to="replies",
        correlation_id="c",
    )


@pytest.mark.parametrize("operation", list(Operation))
def test_every_operation_is_spelled_in_the_routing_key(operation: Operation) -> None:
    asked = read(arrival(f"line_items-2.{operation}", b"", headers={"resource-id": ID}, content_type=None))

    assert (asked.resource, asked.operation, asked.resource_id) == ("line_items-2", operation, UUID(ID))


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON; charset=utf-8",
        'application/json;charset="UTF-8"',
        "application/json; v=1",
    ],
)
def test_json_is_taken_by_its_media_type(content_type: str) -> None:
    assert read(arrival(content_type=content_type)).data == b'{"name":"a"}'


@pytest.mark.parametrize("encoding", [None, "", "utf-8", "UTF-8", "identity"])
def test_harmless_content_encodings_are_taken(encoding: str | None) -> None:
    assert read(arrival(content_encoding=encoding)).data == b'{"name":"a"}'


@pytest.mark.parametrize(
    ("value", "version"), [(3, 3), ("3", 3), ('"3"', 3), (0, 0), (2**63 - 1, 2**63 - 1), (None, None)]
)
def test_if_match_is_an_integer_or_one_in_quotes(value: Any, version: int | None) -> None:
    assert read(patch(if_match=value)).if_match == version


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        ("2026-01-01T00:00:00Z", NOW),
        ("2026-01-01t01:00:00.5+01:00", NOW + timedelta(seconds=0.5)),
        ("2026-01-01T00:00:00.123456789z", NOW + timedelta(microseconds=123456)),
        (datetime(2026, 1, 1), NOW),  # noqa: DTZ001 - as py-amqp reads AMQP's own timestamp
        (datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))), NOW),
    ],
)
def test_run_at_is_rfc_3339_or_an_amqp_timestamp(value: Any, moment: datetime) -> None:
    assert read(patch(run_at=value)).run_at == moment


def test_expiration_counts_from_the_arrival() -> None:
    assert read(arrival(expiration="1500")).expires_at == NOW + timedelta(seconds=1.5)


def test_correlation_falls_back_to_the_message_id() -> None:
    assert read(arrival()).correlation_id == "m-1"


def test_malformed_trace_context_is_ignored() -> None:
    good = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    assert read(patch(traceparent=good)).traceparent == good
    assert read(patch(traceparent="nonsense")).traceparent is None


# ---- CloudEvents -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "data"),
    [
        (event({"name": "a"}), b'{"name":"a"}'),
        (event({"name": "a"}, datacontenttype="application/json"), b'{"name":"a"}'),
        (event(data_base64=base64.b64encode(b'{"n":1}').decode()), b'{"n":1}'),
        (event(), b""),
        (event("text"), b'"text"'),
        (event({"name": "a"}, subject="s", time="2026-01-01T00:00:00Z", ext=1), b'{"name":"a"}'),
    ],
)
def test_structured_event_gives_its_data(body: bytes, data: bytes) -> None:
    assert read(arrival(body=body, content_type=f"{STRUCTURED}; charset=utf-8")).data == data


@pytest.mark.parametrize("prefix", ["cloudEvents_", "cloudEvents:", "ce-", "CE-"])
def test_binary_event_gives_its_body(prefix: str) -> None:
    headers = {prefix + name: value for name, value in EVENT.items()}

    assert read(arrival(headers=headers)).data == b'{"name":"a"}'
    assert read(arrival(headers=headers, content_type=None)).data == b'{"name":"a"}'


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (event({}, specversion="0.3"), 400),
        (event({}, specversion="-"), 400),
        (event({}, id=""), 400),
        (event({}, source="-"), 400),
        (event({}, type=7), 400),
        (event({}, data_base64="e30="), 400),
        (event(data_base64="%%%"), 400),
        (event(data_base64=7), 400),
        (event({}, datacontenttype="text/xml"), 415),
        (event({}, datacontenttype=7), 415),
    ],
)
def test_what_is_not_a_structured_event_is_refused(body: bytes, status: int) -> None:
    assert status_of(arrival(body=body, content_type=STRUCTURED)) == status


@pytest.mark.parametrize("missing", EVENT)
def test_binary_event_without_a_required_attribute_is_refused(missing: str) -> None:
    headers = {f"ce-{name}": value for name, value in EVENT.items() if name != missing}

    assert status_of(arrival(headers=headers)) == 400


# ---- what is refused -------------------------------------------------------------------


@pytest.mark.parametrize(
    "routing_key",
    [
        "",
        "entities",
        "entities.",
        ".create",
        "entities.update",
        "entities.create.x",
        "Entities.create",
        "e e.create",
    ],
)
def test_other_routing_keys_are_refused(routing_key: str) -> None:
    assert status_of(arrival(routing_key)) == 404


@pytest.mark.parametrize("message_id", [None, "", "x" * 256, "a\x00b", "a\nb", "\ud800", 7, b"m"])
def test_message_id_must_be_printable(message_id: Any) -> None:
    assert status_of(arrival(message_id=message_id)) == 400


@pytest.mark.parametrize(
    ("properties", "headers"),
    [
        ({"content_type": None}, {}),
        ({"content_type": "text/plain"}, {}),
        ({"content_type": "application/json; charset=latin-1"}, {}),
        ({"content_type": "application/merge-patch+json"}, {}),
        ({"content_type": "application/cloudevents-batch+json"}, {}),
        ({"content_type": 7}, {}),
        ({"content_encoding": "gzip"}, {}),
        ({"content_encoding": "utf-16"}, {}),
        ({}, {"compression": "application/x-gzip"}),
        ({"content_type": STRUCTURED}, {"compression": "zlib"}),
    ],
)
def test_what_would_have_to_be_decoded_is_refused_undecoded(
    properties: dict[str, Any], headers: dict[str, Any]
) -> None:
    assert status_of(arrival(headers=headers, **properties)) == 415


def test_body_over_the_limit_is_refused() -> None:
    assert read(arrival(body=b"x" * envelope.MAX_BODY_BYTES)).data
    assert status_of(arrival(body=b"x" * (envelope.MAX_BODY_BYTES + 1))) == 413


@pytest.mark.parametrize("operation", ["replace", "patch", "delete", "read"])
@pytest.mark.parametrize("resource_id", [None, "", "7", ID + "0", 7, b"x"])
def test_resource_id_is_required_for_all_but_create(operation: str, resource_id: Any) -> None:
    headers = {} if resource_id is None else {"resource-id": resource_id}
    assert status_of(arrival(f"entities.{operation}", headers=headers)) == 400


@pytest.mark.parametrize(
    "value", ["", "x", '"3', '3"', "-1", -1, 2**63, True, 1.0, "*", 'W/"3"', b"3", "9" * 19, "٣"]
)
def test_other_if_match_is_refused(value: Any) -> None:
    assert status_of(patch(if_match=value)) == 400


def test_if_match_on_create_is_refused() -> None:
    assert status_of(arrival(headers={"if-match": 1})) == 400


@pytest.mark.parametrize(
    "value",
    [
        "",
        "now",
        "2026-01-01",
        "2026-01-01T00:00:00",
        "2026-13-01T00:00:00Z",
        "0001-01-01T00:00:00+23:59",
        7,
        "20260101T000000Z",
    ],
)
def test_other_run_at_is_refused(value: Any) -> None:
    assert status_of(patch(run_at=value)) == 400


@pytest.mark.parametrize("value", ["-1", "1.5", "x", "1" * 13, 7, "٣"])
def test_other_expiration_is_refused(value: Any) -> None:
    assert status_of(arrival(expiration=value)) == 400


@pytest.mark.parametrize(
    "queue",
    [
        "waybill.jobs",
        "waybill.intake",
        "waybill.dead",
        "Waybill.x",
        "celeryev.1",
        "w@h.celery.pidbox",
        "a\x00b",
        7,
    ],
)
def test_reply_to_a_queue_of_ours_is_refused(queue: Any) -> None:
    message = arrival(reply_to=queue)
    assert status_of(message) == 400
    assert message.reply_to is None


def test_damaged_and_late_messages_are_refused_at_sight() -> None:
    damaged = arrival(headers={UNREADABLE: "message_id"})
    late = Arrival(
        routing_key="entities.create", body=b"", properties={}, headers={}, arrived_at=NOW, has_expired=True
    )
    for message, status in ((damaged, 400), (late, 410)):
        with pytest.raises(Refusal) as caught:
            envelope.check_delivery(message)
        assert caught.value.status == status
    envelope.check_delivery(arrival())


# ---- fingerprints ----------------------------------------------------------------------


def test_fingerprint_is_of_what_is_asked_not_of_how_it_was_packed() -> None:
    plain = read(arrival(body=b'{"name":"a"}'))
    packed = read(
        arrival(body=event({"name": "a"}), content_type=STRUCTURED, reply_to="r", correlation_id="c")
    )

    assert plain.fingerprint(KEY) == packed.fingerprint(KEY)


@pytest.mark.parametrize(
    "other",
    [
        patch(if_match=2),
        patch(if_match=1, run_at="2026-01-01T00:00:00Z"),
        arrival("entities.replace", headers={"resource-id": ID, "if-match": 1}),
        arrival("others.patch", headers={"resource-id": ID, "if-match": 1}),
        arrival("entities.patch", b"{}", headers={"resource-id": ID, "if-match": 1}),
        arrival("entities.patch", headers={"resource-id": ID[:-1] + "1", "if-match": 1}),
        arrival("entities.patch", headers={"resource-id": ID, "if-match": 1}, expiration="9"),
    ],
)
def test_fingerprint_differs_with_what_is_asked(other: Arrival) -> None:
    assert read(patch(if_match=1)).fingerprint(KEY) != read(other).fingerprint(KEY)
    assert read(other).fingerprint(KEY) != read(other).fingerprint(b"another key")


# ---- anything at all -------------------------------------------------------------------

_any_text = st.text(st.characters(), max_size=40)
_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | _any_text
    | st.binary(max_size=20)
    | st.datetimes()
)
_values = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_any_text, inner, max_size=3)
)
_known_headers = [
    "resource-id",
    "if-match",
    "run-at",
    "traceparent",
    "compression",
    "ce-id",
    "cloudEvents_type",
]
_known_properties = [
    "message_id",
    "content_type",
    "content_encoding",
    "expiration",
    "reply_to",
    "correlation_id",
    "user_id",
]
_likely = st.sampled_from(
    [ID, "1", '"1"', "application/json", STRUCTURED, "utf-8", "2026-01-01T00:00:00Z", "m-1"]
)


@given(
    routing_key=st.sampled_from(["entities.create", "entities.patch", "entities.read"]) | _any_text,
    body=st.binary(max_size=200) | st.just(event({"name": "a"})),
    properties=st.dictionaries(st.sampled_from(_known_properties), _likely | _values),
    headers=st.dictionaries(
        st.sampled_from(_known_headers) | _any_text | st.binary(max_size=5), _likely | _values, max_size=6
    ),
)
def test_anything_is_either_read_or_refused(
    routing_key: str, body: bytes, properties: dict[str, Any], headers: dict[Any, Any]
) -> None:
    message = Arrival(
        routing_key=routing_key, body=body, properties=properties, headers=headers, arrived_at=NOW
    )
    refusal, asked = None, None
    try:
        envelope.check_delivery(message)
        asked = read(message)
    except Refusal as caught:
        refusal = caught

    if refusal is not None:
        assert 400 <= refusal.status < 500
        assert to_json(replies.refused(message, refusal).problem)
    if asked is not None:
        assert len(asked.fingerprint(KEY)) == 32
        assert "\x00" not in (asked.correlation_id or "")
