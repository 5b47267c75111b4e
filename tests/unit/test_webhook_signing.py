"""Signatures, secrets and ``Retry-After``: what a sender computes before and after the wire."""

import base64
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from models.deliveries.endpoint_secrets import MAX_BYTES, MIN_BYTES, new_secret, parse_secret
from models.errors import Invalid
from tasks.webhook import parse_retry_after, signature_headers

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)

# The example of the Standard Webhooks specification's own test suite.
PUBLISHED_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PUBLISHED_ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
PUBLISHED_TIME = datetime.fromtimestamp(1614265330, UTC)
PUBLISHED_BODY = b'{"test": 2432232314}'
PUBLISHED_SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_published_example_is_signed_as_published() -> None:
    headers = signature_headers([PUBLISHED_SECRET], PUBLISHED_ID, PUBLISHED_TIME, PUBLISHED_BODY)

    assert headers == {
        "webhook-id": PUBLISHED_ID,
        "webhook-timestamp": "1614265330",
        "webhook-signature": PUBLISHED_SIGNATURE,
    }


def test_both_secrets_sign_during_a_rotation() -> None:
    new, old, foreign = new_secret(), new_secret(), new_secret()

    headers = signature_headers([new, old], "id", datetime.now(UTC), b'{"a":1}')

    assert len(headers["webhook-signature"].split(" ")) == 2
    assert Webhook(new).verify(b'{"a":1}', headers) == {"a": 1}
    assert Webhook(old).verify(b'{"a":1}', headers) == {"a": 1}
    with pytest.raises(WebhookVerificationError):
        Webhook(foreign).verify(b'{"a":1}', headers)


def test_signature_holds_for_a_time_in_another_zone() -> None:
    secret = new_secret()
    somewhere = datetime.now(timezone(timedelta(hours=5, minutes=30)))

    headers = signature_headers([secret], "id", somewhere, b"{}")

    assert headers["webhook-timestamp"] == str(int(somewhere.timestamp()))
    assert Webhook(secret).verify(b"{}", headers) == {}


def test_nothing_is_signed_without_a_secret() -> None:
    with pytest.raises(ValueError, match="at least one secret"):
        signature_headers([], "id", NOW, b"{}")


def test_new_secrets_differ_and_parse() -> None:
    first, second = new_secret(), new_secret()

    assert first != second
    assert first.startswith("whsec_")
    assert len(parse_secret(first)) == 32


@given(st.binary(min_size=MIN_BYTES, max_size=MAX_BYTES))
def test_secret_of_legal_length_parses_to_its_key(key: bytes) -> None:
    assert parse_secret("whsec_" + base64.b64encode(key).decode()) == key


_VALID = base64.b64encode(bytes(24)).decode()


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "whsec_",
        _VALID,
        "WHSEC_" + _VALID,
        "whsec_whsec_" + _VALID,
        "whsec_" + base64.b64encode(bytes(23)).decode(),
        "whsec_" + base64.b64encode(bytes(65)).decode(),
        "whsec_" + base64.b64encode(b"\xff" * 25).decode().rstrip("="),
        "whsec_" + base64.urlsafe_b64encode(b"\xff" * 24).decode(),
        "whsec_" + _VALID + "\n",
        "whsec_ " + _VALID,
        "whsec_" + "ÿ" * 32,
        "whsec_" + "A" * 33 + "B==",  # spare bits set
    ],
)
def test_other_spellings_of_a_secret_are_refused_without_repeating_them(secret: str) -> None:
    with pytest.raises(Invalid) as refusal:
        parse_secret(secret)

    assert len(secret) < 10 or secret not in refusal.value.message


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", timedelta(0)),
        ("120", timedelta(minutes=2)),
        (" 120 ", timedelta(minutes=2)),
        ("000000000120", timedelta(minutes=2)),
        ("86400", DAY),
        ("86401", DAY),
        ("9" * 5000, DAY),
        (format_datetime(NOW + timedelta(minutes=5), usegmt=True), timedelta(minutes=5)),
        (format_datetime(NOW - timedelta(minutes=5), usegmt=True), timedelta(0)),
        (format_datetime(NOW + timedelta(days=400), usegmt=True), DAY),
        ("Sunday, 01-Mar-26 12:00:30 GMT", timedelta(seconds=30)),
        ("Sun Mar  1 12:00:30 2026", timedelta(seconds=30)),
        ("Sun, 01 Mar 2026 12:00:30 -0000", timedelta(seconds=30)),
        ("", None),
        ("-1", None),
        ("+1", None),
        ("1.5", None),
        ("1e3", None),
        ("soon", None),
        ("²", None),
        ("Sun, 99 Mar 2026 12:00:00 GMT", None),
        ("Sun, 01 Mar 99999999999999999999 12:00:00 GMT", None),
        ("2026-03-01T12:00:30Z", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_date_within_a_day(value: str, expected: timedelta | None) -> None:
    assert parse_retry_after(value, NOW) == expected


@given(
    st.text(max_size=60) | st.from_regex(r"[A-Z][a-z]{2}, [0-9]{1,3} [A-Z][a-z]{2} [0-9 :]{0,20} [-+A-Z0-9]*")
)
def test_retry_after_of_any_text_is_none_or_within_a_day(value: str) -> None:
    wait = parse_retry_after(value, NOW)

    assert wait is None or timedelta(0) <= wait <= DAY
