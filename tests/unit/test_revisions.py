"""Migrations as they declare themselves: none that is marked as expanding breaks who does not know it."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from models.errors import ConfigurationError
from models.migrate import _runnable
from models.process_name import process_name
from models.revisions import Kind, contractions, known_revisions, read_revision
from tests.kit.migrations import HEAD, write_migration

BUILT_IN = list(known_revisions())


@pytest.mark.parametrize("revision", BUILT_IN, ids=lambda one: one.id)
def test_migration_that_is_said_to_expand_contracts_nothing(revision) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
    found = contractions(revision.path.read_text())

    assert found == [] or revision.kind is Kind.CONTRACT


@pytest.mark.parametrize("revision", BUILT_IN, ids=lambda one: one.id)
def test_migration_declares_what_it_is(revision) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
    assert "\nkind: str = " in revision.path.read_text()


_BREAKS = [
    'op.drop_column("jobs", "role")',
    'op.drop_table("audit")',
    'op.drop_index("idx_jobs_dead", table_name="jobs")',
    'op.rename_table("jobs", "work")',
    'op.alter_column("jobs", "role", new_column_name="part")',
    'op.alter_column("jobs", "role", type_=sa.Text())',
    'op.alter_column("jobs", "role", nullable=False)',
    'op.add_column("jobs", sa.Column("x", sa.Text(), nullable=False))',
    'op.create_unique_constraint("uq", "jobs", ["role"])',
    'op.create_index("uq", "jobs", ["role"], unique=True)',
    'op.execute("ALTER TABLE jobs DROP COLUMN role")',
    'op.execute("ALTER TABLE jobs RENAME COLUMN role TO part")',
    'op.execute("ALTER TABLE jobs ALTER COLUMN role SET NOT NULL")',
    'op.execute("ALTER TABLE jobs ALTER COLUMN role TYPE text")',
    'op.execute("ALTER TABLE jobs ADD CONSTRAINT c CHECK (true)")',
]
_BREAKS_NOTHING = [
    'op.add_column("jobs", sa.Column("x", sa.Text()))',
    'op.add_column("jobs", sa.Column("x", sa.Text(), nullable=False, server_default=sa.text("\'\'")))',
    'op.create_table("more", sa.Column("id", sa.UUID(), nullable=False), sa.CheckConstraint("true"))',
    'op.create_index("idx", "jobs", ["role"])',
    'op.alter_column("jobs", "role", nullable=True)',
]


@pytest.mark.parametrize("line", _BREAKS)
def test_what_breaks_the_previous_version_is_found(line: str) -> None:
    assert len(contractions(f"def upgrade() -> None:\n    {line}\n")) == 1


@pytest.mark.parametrize("line", _BREAKS_NOTHING)
def test_what_breaks_nobody_is_let_pass(line: str) -> None:
    assert contractions(f"def upgrade() -> None:\n    {line}\n") == []


def test_taking_back_is_not_looked_at() -> None:
    assert contractions('def downgrade() -> None:\n    op.drop_table("audit")\n') == []


def test_statement_kept_beside_the_function_is_found() -> None:
    assert contractions('_SQL = "DROP TABLE audit"\n\ndef upgrade() -> None:\n    op.execute(_SQL)\n')


def test_migrations_come_in_an_order_in_which_they_can_run(tmp_path: Path) -> None:
    write_migration(tmp_path, "bbb", "pass", after="ccc")
    write_migration(tmp_path, "ccc", "pass")

    known = known_revisions([tmp_path])

    assert [one.id for one in known] == [*(one.id for one in BUILT_IN), "ccc", "bbb"]
    assert known.heads == ("bbb",)
    assert known.with_ancestors(["ccc", "unknown"]) == {*(one.id for one in BUILT_IN), "ccc"}


class Garbage:
    """Freed while whoever allocates next is at work, which another thread may interrupt."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        for _ in range(50):
            pass


@pytest.fixture
def restless_threads() -> Iterator[None]:
    """They take turns as often as they can."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


def test_threads_may_read_them_at_once(restless_threads: None) -> None:
    """Two that migrate, or one that is being looked at while it does."""

    def read_often() -> int:
        for _ in range(20):
            Garbage()
            known_revisions()
        return 20

    with ThreadPoolExecutor(2) as both:
        assert [one.result(60) for one in [both.submit(read_often) for _ in range(2)]] == [20, 20]


def test_migrations_that_wait_for_each_other_are_refused(tmp_path: Path) -> None:
    write_migration(tmp_path, "bbb", "pass", after="ccc")
    write_migration(tmp_path, "ccc", "pass", after="bbb")

    with pytest.raises(ConfigurationError, match="build on each other"):
        known_revisions([tmp_path])


def test_migration_that_declares_nothing_is_taken_for_a_contract(tmp_path: Path) -> None:
    path = tmp_path / "one.py"
    path.write_text('"""One."""\nrevision = "one"\ndown_revision = None\n')

    found = read_revision(path)

    assert found is not None
    assert (found.kind, found.compatible_since, found.title) == (Kind.CONTRACT, "one", "One.")


def test_what_builds_on_a_contract_waits_with_it(tmp_path: Path) -> None:
    write_migration(tmp_path, "ccc", "pass", kind="contract")
    write_migration(tmp_path, "ddd", "pass", after="ccc")
    waiting = [one for one in known_revisions([tmp_path]) if one.id not in {two.id for two in BUILT_IN}]

    assert _runnable(waiting, contract=False) == []
    assert [one.id for one in _runnable(waiting, contract=True)] == ["ccc", "ddd"]


def test_connections_tell_role_version_and_newest_migration() -> None:
    assert process_name("worker", [HEAD]).startswith("waybill-worker/")
    assert process_name("worker", [HEAD]).endswith(f"+{HEAD}")
    assert len(process_name("worker", ["0123456789ab"] * 9)) == 63
