"""Cursors come back as they went out, and nothing else is taken for one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.cursor import Cursors
from models.errors import Invalid

CURSORS = Cursors(b"k" * 32)
QUESTION = ["entities", "someone", "name", None, "q"]
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@given(st.lists(st.one_of(st.none(), text), max_size=5), st.lists(text, min_size=1, max_size=3))
def test_cursor_comes_back_for_the_same_question(question: list[str | None], position: list[str]) -> None:
    assert CURSORS.read(question, CURSORS.write(question, position), len(position)) == position


@given(st.integers(min_value=0), st.integers(1, 255))
def test_any_changed_byte_is_refused(place: int, change: int) -> None:
    cursor = bytearray(CURSORS.write(QUESTION, ["Ada", "id"]).encode())
    place %= len(cursor)
    cursor[place] = (cursor[place] + change) % 256
    with pytest.raises(Invalid):
        CURSORS.read(QUESTION, cursor.decode("latin-1"), 2)


@given(st.text(max_size=200))
def test_foreign_text_is_refused(cursor: str) -> None:
    with pytest.raises(Invalid):
        CURSORS.read(QUESTION, cursor, 2)


@pytest.mark.parametrize(
    "other",
    [
        ["users", "someone", "name", None, "q"],
        ["entities", "other", "name", None, "q"],
        ["entities", "someone"],
    ],
)
def test_cursor_of_another_question_is_refused(other: list[str | None]) -> None:
    with pytest.raises(Invalid):
        CURSORS.read(other, CURSORS.write(QUESTION, ["Ada", "id"]), 2)


def test_cursor_under_another_key_is_refused() -> None:
    with pytest.raises(Invalid):
        CURSORS.read(QUESTION, Cursors(b"x" * 32).write(QUESTION, ["Ada", "id"]), 2)


def test_position_of_another_length_is_refused() -> None:
    with pytest.raises(Invalid):
        CURSORS.read(QUESTION, CURSORS.write(QUESTION, ["Ada"]), 2)
