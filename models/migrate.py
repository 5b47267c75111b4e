"""Migrations: bring a database to the present schema, tell whether it is, write new revisions."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError, to_tuple
from sqlalchemy import Connection, Engine, inspect, text

from models.database import translated_errors
from models.errors import ConfigurationError
from models.resource_type import ResourceType
from models.search_indexes import ensure_search_indexes
from models.tables import SCHEMA, metadata

_HOME = Path(__file__).parent / "migrations"
_LOCK = 0x5741_5942
"""Key of the advisory lock that lets one process migrate at a time ("WAYB")."""


def migrate(
    engine: Engine,
    folders: Iterable[Path] = (),
    resources: Iterable[ResourceType] = (),
    *,
    create_tables: bool = False,
) -> list[str]:
    """Bring the database to the newest revision. Safe to run from several processes at once.

    Args:
        engine: Where; its role must own the database, and needs no superuser.
        folders: Folders with migrations of your own resources.
        resources: Those whose search indexes are looked after, where PostgreSQL has ``pg_trgm``.
        create_tables: Also make the tables of registered resources that no migration has made.

    Returns:
        Tables of registered resources that are still missing (never any with ``create_tables``).
    """
    with translated_errors(), engine.begin() as connection:
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("SET LOCAL lock_timeout = 0"))  # another migration takes what it takes
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        connection.execute(text("SET LOCAL lock_timeout = '10s'"))
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
        _default_search_path(connection)
        command.upgrade(_config(connection, folders), "heads")
        missing = _missing_tables(connection)
        if create_tables and missing:
            metadata.create_all(connection, tables=[metadata.tables[name] for name in missing])
            missing = []
        ensure_search_indexes(connection, resources)
    return missing


def is_current(connection: Connection, folders: Iterable[Path] = ()) -> bool:
    """Whether every migration has run and every registered resource has its table."""
    script = ScriptDirectory.from_config(_config(connection, folders))
    applied = MigrationContext.configure(connection).get_current_heads()
    try:
        is_newest = _with_ancestors(script, applied) >= set(script.get_heads())
    except CommandError:
        return False  # a revision that only a newer release knows
    return is_newest and not _missing_tables(connection)


def _with_ancestors(script: ScriptDirectory, revisions: Iterable[str]) -> set[str]:
    """``revisions`` and all that they build upon: alembic records only those that nothing else depends on."""
    found: set[str] = set()
    waiting = list(revisions)
    while waiting:
        revision = script.get_revision(waiting.pop())
        if revision.revision not in found:
            found.add(revision.revision)
            waiting += [*to_tuple(revision.down_revision, ()), *to_tuple(revision.dependencies, ())]
    return found


def write_revision(engine: Engine, message: str, folder: Path) -> Path:
    """Write a migration for what the registered tables have and the database lacks.

    Args:
        engine: A database that is at the newest revision.
        message: Becomes the revision's name.
        folder: Where to write it; name it in ``WAYBILL_MIGRATIONS``.

    Raises:
        ConfigurationError: The database lacks nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with translated_errors(), engine.begin() as connection:
        config = _config(connection, [folder])
        script = ScriptDirectory.from_config(config)
        own = [item for item in script.walk_revisions() if Path(item.path).parent == folder.resolve()]
        revision = command.revision(
            config,
            message,
            autogenerate=True,
            head=own[0].revision if own else "base",
            splice=not own,
            version_path=str(folder.resolve()),
            branch_label=None if own else folder.resolve().parent.name.replace("-", "_") or None,
            depends_on=None if own else script.get_heads()[0],
            process_revision_directives=_leave_out_empty,
        )
    if revision is None or isinstance(revision, list):
        raise ConfigurationError("nothing to write: the database has every registered table")
    return Path(revision.path)


def _leave_out_empty(context: Any, revision: Any, directives: list[Any]) -> None:
    if directives[0].upgrade_ops.is_empty():
        directives.clear()


def _config(connection: Connection, folders: Iterable[Path]) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_HOME))
    config.set_main_option("path_separator", "newline")
    locations = [_HOME / "versions", *(folder.resolve() for folder in folders)]
    config.set_main_option("version_locations", "\n".join(map(str, locations)))
    config.attributes["connection"] = connection
    return config


def _missing_tables(connection: Connection) -> list[str]:
    present = set(inspect(connection).get_table_names(schema=SCHEMA))
    return [table.name for table in metadata.sorted_tables if table.name not in present]


def _default_search_path(connection: Connection) -> None:
    """Let a plain ``psql`` find the tables; only the database's owner may, so it is asked first."""
    owns = connection.execute(_OWNS_DATABASE).scalar_one()
    if owns:
        name = connection.dialect.identifier_preparer.quote(
            connection.execute(text("SELECT current_database()")).scalar_one()
        )
        connection.execute(text(f"ALTER DATABASE {name} SET search_path = {SCHEMA}, public"))


_OWNS_DATABASE = text(
    "SELECT pg_catalog.pg_has_role(datdba, 'USAGE') FROM pg_database WHERE datname = current_database()"
)
