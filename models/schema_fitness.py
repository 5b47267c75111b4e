"""Which migrations a database has had, and whether this code can work with what they made. Changes no schema.

::

    lacks an expand that this code knows       ──▶ not fit: run waybill migrate
    has an expand that this code does not know ──▶ fit: a newer version is being rolled out
    lacks a contract that this code knows      ──▶ fit: it is run once the older version has ended
    has a contract that this code does not know──▶ not fit: this version is too old for this database

Alembic records only the newest revisions, which tell nothing to who does not know them. So each migration
also leaves a row of what it is in ``applied_migrations``, in its own transaction.
"""

from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

from sqlalchemy import Connection, inspect, text

from models.process_name import Process, living
from models.revisions import Kind, Revision, Revisions
from models.tables import SCHEMA, metadata

_MIGRATE = "run waybill migrate"


def why_unfit(connection: Connection, revisions: Revisions) -> str | None:
    """Why this code cannot work with this database, and how to mend it; None where it can.

    Args:
        connection: Committing each statement, or in a transaction.
        revisions: What this code knows. Every resource must have been registered.
    """
    heads, applied = newest(connection), _applied(connection)
    if not heads:
        return f"the schema is not current: {_MIGRATE}"
    recorded = {row.revision for row in applied}
    strangers = sorted(heads - recorded - {one.id for one in revisions})
    if strangers:
        return (
            f"the schema is at revision {strangers[0]}, which this version does not know and of which "
            "nothing is recorded: start the version that made it"
        )
    for row in applied:
        is_known = row.revision in revisions or row.compatible_since in revisions
        if row.kind == Kind.CONTRACT and not is_known:
            return (
                f"the schema has been contracted beyond this version ({version('waybill')}) by revision "
                f"{row.revision}{f' of version {row.version}' if row.version else ''}: start that version"
            )
    lacking = pending(connection, revisions)
    missing = [one for one in lacking if one.kind is Kind.EXPAND]
    if missing:
        behind = next((one for one in lacking if one.kind is Kind.CONTRACT), None)
        how = _MIGRATE
        if behind is not None and behind.id in revisions.with_ancestors([missing[0].id]):
            how += " --contract, once no process of an older version runs"
        return f"the schema is not current, it lacks {missing[0]}: {how}"
    if tables := missing_tables(connection):
        return f"the schema is not current, it has no table {tables[0]}: {_MIGRATE}"
    return None


def pending(connection: Connection, revisions: Revisions) -> list[Revision]:
    """What this code knows and the database has not had, in the order in which it can run."""
    heads = newest(connection)
    had = revisions.with_ancestors(heads)
    if any(one not in revisions for one in heads):
        had |= {row.revision for row in _applied(connection)}
    return [one for one in revisions if one.id not in had]


def older_than(contract: Revision, connection: Connection, revisions: Revisions) -> list[Process]:
    """The processes that are connected now and would not go on working after ``contract``."""
    needed = (
        revisions[contract.compatible_since].id if contract.compatible_since in revisions else contract.id
    )
    return [one for one in living(connection) if not _knows(one, needed, revisions)]


def _knows(process: Process, needed: str, revisions: Revisions) -> bool:
    """Whether a process knows a revision.

    Where it does not name one of those before it, and names one that we do not know, it is newer than we.
    """
    mine = [one.id for one in revisions if any(one.id.startswith(head) for head in process.heads)]
    if needed in revisions.with_ancestors(mine):
        return True
    is_strange = any(not any(one.startswith(head) for one in mine) for head in process.heads)
    return is_strange and not revisions.with_ancestors([needed]) & set(mine)


def missing_tables(connection: Connection) -> list[str]:
    """Tables of registered resources that no migration made."""
    present = set(inspect(connection).get_table_names(schema=SCHEMA))
    return [table.name for table in metadata.sorted_tables if table.name not in present]


def newest(connection: Connection) -> set[str]:
    """The revisions that nothing applied builds on; none where there is no schema."""
    if not _is_there(connection, "alembic_version"):
        return set()
    return set(connection.execute(text(f"SELECT version_num FROM {SCHEMA}.alembic_version")).scalars())


def record(connection: Connection, revisions: Revisions, identifier: str) -> None:
    """Record a migration, in its transaction, and those before it that ran when nothing was recorded."""
    if not _is_there(connection, "applied_migrations"):
        return
    rows = [
        {
            "revision": one,
            "kind": revisions[one].kind,
            "since": revisions[one].compatible_since,
            "version": version("waybill") if one == identifier else None,
        }
        for one in sorted(revisions.with_ancestors([identifier]))
    ]
    connection.execute(_RECORD, rows)


def forget(connection: Connection, identifiers: Iterable[str]) -> None:
    """Forget migrations that were taken back."""
    if _is_there(connection, "applied_migrations"):
        connection.execute(_FORGET, [{"revision": one} for one in identifiers])


def _applied(connection: Connection) -> Sequence[Any]:
    if not _is_there(connection, "applied_migrations"):
        return ()
    return connection.execute(_APPLIED).all()


def _is_there(connection: Connection, table: str) -> bool:
    found = connection.execute(text("SELECT to_regclass(:name)"), {"name": f"{SCHEMA}.{table}"})
    return found.scalar_one() is not None


_APPLIED = text(
    f"SELECT revision, kind, compatible_since, version FROM {SCHEMA}.applied_migrations ORDER BY applied_at"
)
_RECORD = text(
    f"INSERT INTO {SCHEMA}.applied_migrations (revision, kind, compatible_since, version) "
    "VALUES (:revision, :kind, :since, :version) ON CONFLICT DO NOTHING"
)
_FORGET = text(f"DELETE FROM {SCHEMA}.applied_migrations WHERE revision = :revision")
