"""Identifiers: one spelling, times inside, lanes that fit PostgreSQL."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.ids import created_at, lane_key, new_id, parse_id


def test_new_ids_sort_by_the_time_of_their_making() -> None:
    made = [new_id() for _ in range(1000)]
    assert made == sorted(made)
    assert len(set(made)) == 1000


def test_time_is_read_back_out_of_an_id() -> None:
    moment = created_at(new_id())
    assert moment is not None
    assert abs(moment - datetime.now(UTC)) < timedelta(seconds=2)


@pytest.mark.parametrize("identifier", [uuid4(), UUID(int=(2**48 - 1 << 80) + (7 << 76) + (2 << 62))])
def test_id_without_a_time_has_none(identifier: UUID) -> None:
    assert created_at(identifier) is None


@given(identifier=st.uuids(), is_upper=st.booleans())
def test_canonical_spelling_is_taken_in_either_case(identifier: UUID, *, is_upper: bool) -> None:
    text = str(identifier).upper() if is_upper else str(identifier)
    assert parse_id(text) == identifier


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x" * 36,
        str(uuid4()).replace("-", ""),
        "{" + str(uuid4())[:34] + "}",
        "urn:uuid:" + str(uuid4()),
        str(uuid4()) + "\n",
        " " + str(uuid4())[:-1],
        str(uuid4())[:-1] + "٣",
        "-" * 4 + uuid4().hex,
    ],
)
def test_other_spellings_are_refused(text: str) -> None:
    assert parse_id(text) is None


@given(st.text(max_size=63), st.uuids())
def test_lane_key_is_a_signed_64_bit_number_and_always_the_same(resource: str, identifier: UUID) -> None:
    try:
        resource.encode()
    except UnicodeEncodeError:
        return
    key = lane_key(resource, identifier)
    assert -(2**63) <= key < 2**63
    assert key == lane_key(resource, UUID(str(identifier)))


def test_lanes_of_different_instances_and_resources_differ() -> None:
    identifiers = [new_id() for _ in range(2000)]
    keys = {lane_key(resource, one) for one in identifiers for resource in ("entities", "invoices")}
    assert len(keys) == 4000
