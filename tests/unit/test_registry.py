"""Finding resources: built-in, named by setting; what is wrong is said in one line."""

from dataclasses import replace
from pathlib import Path

import pytest

from models.errors import ConfigurationError, NotFound
from models.registry import Registry, discover
from models.resource_type import Parent
from models.resources import entities, related
from tests.kit import tickets


def test_built_in_and_named_resources_are_found_by_name() -> None:
    registry = discover(["tests.kit.tickets", "tests.kit.tickets"])
    assert [one.type.name for one in registry] == ["entities", "related", "tickets", "users"]
    assert registry["tickets"].type is tickets.RESOURCE
    assert "tickets" in registry
    assert "parcels" not in registry


def test_unknown_resource_is_404() -> None:
    with pytest.raises(NotFound):
        discover()["parcels"]


def test_part_knows_its_parent_and_where_it_is_found() -> None:
    registry = discover()
    entities, related = registry["entities"], registry["related"]
    assert (related.parent, registry.children("entities")) == (entities, (related,))
    assert (entities.instance_path, related.path) == ("entities/{id}", "entities/{id}/related")
    assert related.instance_path == "entities/{id}/related/{partId}"


@pytest.mark.parametrize("parent", ["nowhere", "related", "orphans"])
def test_parent_that_cannot_be_one_is_refused(parent: str) -> None:
    orphan = replace(related.RESOURCE, name="orphans", parent=Parent(parent, "entity_id"))
    with pytest.raises(ConfigurationError, match=f"its parent {parent} is not"):
        Registry([entities.RESOURCE, related.RESOURCE, orphan])


def test_two_resources_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="two resources are called tickets"):
        Registry([tickets.RESOURCE, replace(tickets.RESOURCE)])


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("", "has no RESOURCE"),
        ("RESOURCE = 5", "has no RESOURCE"),
        ("import no_such_thing", "cannot import"),
        ("1 / 0", "cannot import"),
        ("def broken(:", "cannot import"),
    ],
)
def test_module_that_declares_nothing_or_cannot_be_imported_is_named(
    source: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"resource_{abs(hash(source))}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigurationError, match=complaint) as caught:
        discover([name])
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_module_that_does_not_exist_is_named_with_a_hint() -> None:
    with pytest.raises(ConfigurationError, match=r"cannot import no_such_module.*PYTHONPATH"):
        discover(["no_such_module"])
