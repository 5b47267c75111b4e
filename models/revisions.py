"""The migrations that this code knows: what each builds on, and whether it expands or contracts. No database.

::

    expand      the previous version's processes go on working: new tables, nullable columns, indexes
    contract    only once no process runs that does not know it: what they use is dropped or renamed

A version works on a schema before its own contracting migrations and after them.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from threading import Lock
from typing import Any

from models.errors import ConfigurationError

HOME = Path(__file__).parent / "migrations"


class Kind(StrEnum):
    """What a migration does to processes of the previous version. Stored: never renamed."""

    EXPAND = "expand"
    CONTRACT = "contract"


@dataclass(frozen=True, slots=True)
class Revision:
    """One migration.

    Attributes:
        builds_on: Those that must have run before.
        kind: Declared in its file as ``kind``; one that declares nothing is a contract, to be safe.
        compatible_since: Of a contract: who knows this revision goes on working after it. Its own id
            unless its file declares an earlier one.
        title: The first line of its file.
    """

    id: str
    builds_on: tuple[str, ...]
    kind: Kind
    compatible_since: str
    title: str
    path: Path

    def __str__(self) -> str:
        """As people are told of it."""
        return f"{self.id} ({self.title.rstrip('.')})"


class Revisions:
    """Migrations in an order in which they can run.

    Args:
        found: By their ids.

    Raises:
        ConfigurationError: They build on each other in a circle.
    """

    def __init__(self, found: Mapping[str, Revision]) -> None:
        self._by_id: dict[str, Revision] = {}
        waiting = dict(sorted(found.items()))
        while waiting:
            ready = [one for one in waiting.values() if not waiting.keys() & set(one.builds_on)]
            if not ready:
                raise ConfigurationError(f"migrations build on each other: {', '.join(waiting)}")
            for one in ready:
                self._by_id[one.id] = waiting.pop(one.id)
        below = {parent for one in self for parent in one.builds_on}
        self.heads = tuple(one.id for one in self if one.id not in below)
        """Those that no other builds on."""

    def __iter__(self) -> Iterator[Revision]:
        return iter(self._by_id.values())

    def __contains__(self, identifier: object) -> bool:
        return identifier in self._by_id

    def __getitem__(self, identifier: str) -> Revision:
        return self._by_id[identifier]

    def with_ancestors(self, identifiers: Iterable[str]) -> set[str]:
        """Those of ``identifiers`` that are known, and all that they build upon."""
        found: set[str] = set()
        waiting = list(identifiers)
        while waiting:
            one = waiting.pop()
            if one in self and one not in found:
                found.add(one)
                waiting += self[one].builds_on
        return found


def known_revisions(folders: Iterable[Path] = ()) -> Revisions:
    """Read the built-in migrations and those in ``folders``, without running them.

    Raises:
        ConfigurationError: A file cannot be read.
    """
    found = {}
    for folder in (HOME / "versions", *folders):
        for path in sorted(folder.glob("*.py")):
            try:
                revision = read_revision(path)
            except (OSError, SyntaxError, ValueError) as error:
                raise ConfigurationError(f"migration {path} cannot be read: {error}") from error
            if revision is not None:
                found[revision.id] = revision
    return Revisions(found)


def read_revision(path: Path) -> Revision | None:
    """The migration in a file; None where it holds none."""
    tree = _parse(path.read_text())
    said = _constants(tree)
    if not isinstance(said.get("revision"), str):
        return None
    return Revision(
        id=said["revision"],
        builds_on=(*_ids(said.get("down_revision")), *_ids(said.get("depends_on"))),
        kind=Kind(said.get("kind", Kind.CONTRACT)),
        compatible_since=said.get("compatible_since") or said["revision"],
        title=(ast.get_docstring(tree) or path.stem).partition("\n")[0],
        path=path,
    )


_ONE_AT_A_TIME = Lock()


def _parse(source: str) -> ast.Module:
    """As ``ast.parse``, which in Python 3.11 fails with a ``SystemError`` where two threads are in it.

    Source: https://github.com/python/cpython/issues/106905
    """
    with _ONE_AT_A_TIME:
        return ast.parse(source)


def _constants(tree: ast.Module) -> dict[str, Any]:
    """What a module assigns at its top: names with plain values."""
    found: dict[str, Any] = {}
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant | ast.Tuple | ast.List):
            found[target.id] = ast.literal_eval(value)
    return found


def _ids(value: str | Iterable[str] | None) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def contractions(source: str) -> list[str]:
    """What in a migration's ``upgrade`` may break who does not know it; nothing where it only expands.

    A migration that is marked as expanding has none (``tests/unit/test_revisions.py``), and
    ``waybill migrate new`` marks by it. An index that is dropped counts: it was there for somebody.
    """
    found = []
    for node in _parse(source).body:
        if not (isinstance(node, ast.FunctionDef) and node.name != "upgrade"):
            found += [told for one in ast.walk(node) if (told := _contraction(one)) is not None]
    return found


_CONTRACTING_SQL = re.compile(
    r"\b(DROP|RENAME|TRUNCATE|REVOKE|SET NOT NULL|ADD CONSTRAINT|CREATE UNIQUE INDEX|ALTER TYPE"
    r"|ALTER COLUMN \w+ (SET DATA )?TYPE)\b"
)
_CONTRACTING_OPERATION = re.compile(
    r"drop_\w+|rename_table|create_(unique_constraint|check_constraint|foreign_key|exclude_constraint)"
)
_CONTRACTING_CHANGES = {"type_", "new_column_name"}


def _contraction(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        sql = _CONTRACTING_SQL.search(node.value)
        return None if sql is None else sql[0]
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return None
    name, given = node.func.attr, {one.arg: one.value for one in node.keywords}
    if _CONTRACTING_OPERATION.fullmatch(name):
        return name
    if name == "create_index" and _is(given.get("unique"), True):
        return "a unique index"
    if name == "alter_column" and (
        _CONTRACTING_CHANGES & given.keys() or _is(given.get("nullable"), False) or "server_default" in given
    ):
        return name
    if name == "add_column" and _is_demanding(node):
        return "a column that must be given"
    return None


def _is_demanding(add_column: ast.Call) -> bool:
    """Whether it adds a column that may not be null and has no default."""
    for node in ast.walk(add_column):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "Column":
            given = {one.arg: one.value for one in node.keywords}
            if _is(given.get("nullable"), False) and "server_default" not in given:
                return True
    return False


def _is(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value
