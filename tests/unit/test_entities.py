"""Entities: which names they may have, in the code and in the schema that clients read."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from models.resources.entities import NAME_PATTERN, EntityCreate


def _is_taken(name: str) -> bool:
    try:
        EntityCreate.model_validate({"name": name})
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("name", ["Ada", " Ada ", "O'Neil\u00a0& Söhne", "👩\u200d🚀", "a\u202eb", "名前"])
def test_names_of_all_the_world_are_taken(name: str) -> None:
    assert _is_taken(name)


@pytest.mark.parametrize(
    "name", ["", " ", "\u3000\u00a0", "a\nb", "a\x7f", "\x85", "a\u2028b", "\t", "x" * 256]
)
def test_blank_and_control_characters_are_refused(name: str) -> None:
    assert not _is_taken(name)


@given(st.text(min_size=1, max_size=20))
@example("a\n")
@example("\u2028")
@example(" \x85")
def test_schema_says_what_the_code_does(name: str) -> None:
    assert (re.search(NAME_PATTERN.replace("$", r"\Z"), name) is not None) == _is_taken(name)
