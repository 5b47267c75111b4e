"""The place of an item in a list survives its way through a cursor, whatever it is sorted by."""

from enum import Enum
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from models.cursor import MAX_CURSOR_LENGTH, Cursors
from models.errors import Invalid
from models.list_place import LongText, place_text, place_value
from tests.kit.shelves import SORTED

CURSORS = Cursors(b"k" * 32)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=2_000)


def through_a_cursor(kind: Any, value: Any) -> Any:
    cursor = CURSORS.write([], [place_text(kind, value), str(UUID(int=1))])
    assert len(cursor) <= MAX_CURSOR_LENGTH
    return place_value(kind, CURSORS.read([], cursor, 2)[0])


@pytest.mark.parametrize(
    ("kind", "value"),
    [(kind, value) for name, (kind, values) in SORTED.items() if name != "story" for value in values],
)
def test_sort_value_comes_back_as_it_went(kind: Any, value: Any) -> None:
    back = through_a_cursor(kind, value)
    assert (type(back), back) == (type(value), value)


@given(texts)
def test_text_comes_back_or_is_known_again(text: str) -> None:
    back = through_a_cursor(sa.Text(), text)
    assert back == text if len(text) <= 500 else back.is_of(text)


@pytest.mark.parametrize("letter", ["a", "\x01", '"', "\u2713", "\U0001f600"])
@pytest.mark.parametrize("length", [500, 501, 200_000])
def test_cursor_is_short_whatever_a_text_is_of(letter: str, length: int) -> None:
    back = through_a_cursor(sa.Text(), letter * length)
    assert isinstance(back, LongText) is (length > 500)


def test_long_text_is_not_taken_for_another() -> None:
    back = through_a_cursor(sa.Text(), "a" * 501)
    assert back.is_of("a" * 501)
    assert not back.is_of("a" * 502)


class Colour(Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (sa.Integer(), "seven"),
        (sa.Boolean(), "1"),
        (sa.Numeric(), "much"),
        (sa.Date(), "today"),
        (sa.Uuid(), "x"),
        (sa.Enum(Colour), "Colour.RED"),
    ],
)
def test_place_of_a_column_that_had_another_type_is_invalid(kind: Any, text: str) -> None:
    with pytest.raises(Invalid, match="begin without it"):
        place_value(kind, text)
