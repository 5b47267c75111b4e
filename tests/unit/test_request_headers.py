"""What headers mean, and which are refused."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_shim.web import request_headers
from models.errors import Invalid
from models.job import Priority


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        (None, None),
        ("wait=10", 10),
        ("wait=30", 30),
        ("wait=0", None),
        ("respond-async", None),
        ("respond-async, wait=5", 5),
        ("Wait = 5", 5),
        ('wait="7"', 7),
        ("wait=5; foo=bar", 5),
        ("wait=3, wait=9", 3),
        ("handling=lenient", None),
        ("waiting=1", None),
        ("", None),
    ],
)
def test_prefer_wait_is_read_as_rfc_7240_has_it(prefer: str | None, seconds: int | None) -> None:
    assert request_headers.wait_seconds(prefer) == seconds


@pytest.mark.parametrize(
    "prefer", ["wait", "wait=", "wait=31", "wait=-1", "wait=1.5", "wait=ten", "wait=99999", "wait=²"]
)
def test_malformed_wait_is_400(prefer: str) -> None:
    with pytest.raises(Invalid):
        request_headers.wait_seconds(prefer)


def test_if_match_is_one_version() -> None:
    assert request_headers.if_match('"17"') == 17


@pytest.mark.parametrize(
    "value",
    [
        "",
        "*",
        "1",
        '""',
        'W/"1"',
        '"1", "2"',
        '"01"',
        '"-1"',
        '"1.0"',
        '"a"',
        '"9999999999999999999"',
        ' "1"',
    ],
)
def test_other_if_match_is_400(value: str) -> None:
    with pytest.raises(Invalid):
        request_headers.if_match(value)


@pytest.mark.parametrize(
    ("value", "matches"),
    [
        (None, False),
        ("*", True),
        ('"3"', True),
        ('W/"3"', True),
        ('"2", "3"', True),
        ('"2"', False),
        ('"abc"', False),
        ('"03"', False),
    ],
)
def test_if_none_match_compares_weakly(value: str | None, matches: bool) -> None:
    assert request_headers.matches_any(value, 3) is matches


@pytest.mark.parametrize("value", ["3", "", '"3', "*, *", '"1" "3"'])
def test_malformed_if_none_match_is_400(value: str) -> None:
    with pytest.raises(Invalid):
        request_headers.matches_any(value, 3)


@pytest.mark.parametrize("key", ["a", "~" * 255, "with space", '"quoted"'])
def test_idempotency_key_is_printable_ascii(key: str) -> None:
    assert request_headers.idempotency_key(key) == key


@pytest.mark.parametrize("key", ["", "a" * 256, "tab\t", "ä", "\x7f", "nul\x00"])
def test_other_idempotency_keys_are_400(key: str) -> None:
    with pytest.raises(Invalid):
        request_headers.idempotency_key(key)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2030-01-31T12:00:00Z", datetime(2030, 1, 31, 12, tzinfo=UTC)),
        ("2030-01-31T12:00:00.5+01:00", datetime(2030, 1, 31, 11, 0, 0, 500_000, tzinfo=UTC)),
        ("2030-01-31t12:00:00z", datetime(2030, 1, 31, 12, tzinfo=UTC)),
    ],
)
def test_times_are_rfc_3339(text: str, moment: datetime) -> None:
    assert request_headers.time_header("Waybill-Run-At", text) == moment


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tomorrow",
        "2030-01-31",
        "2030-01-31T12:00:00",
        "20300131T120000Z",
        "2030-W05-4T12:00:00Z",
        "2030-02-30T12:00:00Z",
        "2030-01-31T25:00:00Z",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
        "1893456000",
        "2030-01-31T12:00:00Z ",
    ],
)
def test_other_times_are_400(text: str) -> None:
    with pytest.raises(Invalid):
        request_headers.time_header("Waybill-Run-At", text)


@given(st.text(max_size=40))
def test_any_time_is_read_or_refused(text: str) -> None:
    try:
        assert request_headers.time_header("Waybill-Run-At", text).tzinfo is UTC
    except Invalid:
        return


def test_priority_is_one_of_three() -> None:
    assert request_headers.priority("bulk") is Priority.BULK
    with pytest.raises(Invalid):
        request_headers.priority("urgent")


@pytest.mark.parametrize(
    "value", ["", "x", "018f3c1e-0000-7000-8000-00000000000", "{18f3c1e-0000-7000-8000-00000000000}"]
)
def test_callback_must_be_an_id(value: str) -> None:
    with pytest.raises(Invalid):
        request_headers.endpoint_id(value)


def test_malformed_traceparent_is_ignored() -> None:
    good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    assert request_headers.traceparent(good) == good
    for bad in (
        None,
        "",
        good.upper(),
        good + "-x",
        good.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32),
    ):
        assert request_headers.traceparent(bad) is None
