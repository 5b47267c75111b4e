"""JSON Merge Patch: the table of RFC 7396, appendix A, and what holds for every patch."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.merge_patch import apply

APPENDIX_A = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]


@pytest.mark.parametrize(("target", "patch", "merged"), APPENDIX_A)
def test_appendix_of_the_rfc(target: Any, patch: Any, merged: Any) -> None:
    assert apply(target, patch) == merged


scalars = st.none() | st.booleans() | st.integers() | st.text("ab", max_size=2)
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner)
)


@given(documents, documents)
def test_neither_document_nor_patch_is_changed(target: Any, patch: Any) -> None:
    before = copy.deepcopy((target, patch))
    apply(target, patch)
    assert (target, patch) == before


@given(documents, documents)
def test_patching_twice_is_patching_once(target: Any, patch: Any) -> None:
    once = apply(target, patch)
    assert apply(once, patch) == once


@given(documents, st.dictionaries(st.sampled_from("abc"), documents))
def test_members_are_removed_replaced_or_left_alone(target: Any, patch: dict[str, Any]) -> None:
    merged = apply(target, patch)
    kept = target if isinstance(target, dict) else {}
    assert all(merged[name] == value for name, value in kept.items() if name not in patch)
    assert not [name for name, value in patch.items() if value is None and name in merged]
    assert set(merged) <= set(kept) | set(patch)
