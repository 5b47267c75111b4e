"""Cursors: opaque, signed, for one question only."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.cursor import Cursors
from models.errors import Invalid

CURSORS = Cursors(b"k" * 32)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
questions = st.lists(st.none() | texts, max_size=5)
positions = st.lists(texts, min_size=1, max_size=3)


@given(questions, positions)
def test_what_was_written_is_read_back(question: list[str | None], position: list[str]) -> None:
    assert CURSORS.read(question, CURSORS.write(question, position), len(position)) == position


@given(questions, questions, positions)
def test_cursor_answers_no_other_question(
    question: list[str | None], other: list[str | None], position: list[str]
) -> None:
    cursor = CURSORS.write(question, position)
    if question != other:
        with pytest.raises(Invalid):
            CURSORS.read(other, cursor, len(position))


@given(st.text(max_size=200) | st.binary(max_size=60).map(lambda data: data.hex()))
def test_anything_else_is_invalid(cursor: str) -> None:
    with pytest.raises(Invalid):
        CURSORS.read(["x"], cursor, 2)


def test_cursor_of_another_key_or_length_is_invalid() -> None:
    cursor = CURSORS.write(["x"], ["a", "b"])
    with pytest.raises(Invalid):
        Cursors(b"l" * 32).read(["x"], cursor, 2)
    with pytest.raises(Invalid):
        CURSORS.read(["x"], cursor, 3)
    with pytest.raises(Invalid):
        CURSORS.read(["x"], cursor + "A", 2)
