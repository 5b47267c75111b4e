"""Migrations: bring a database to the present schema beside a platform that works, write new revisions."""

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from models.database import translated_errors
from models.errors import ConfigurationError, Conflict
from models.index_building import mend_indexes
from models.lock_patience import Patience
from models.resource_type import ResourceType
from models.revisions import HOME, Kind, Revision, Revisions, contractions, known_revisions
from models.schema_fitness import missing_tables, newest, older_than, pending
from models.search_indexes import ensure_search_indexes
from models.tables import SCHEMA, metadata

_LOCK = 0x5741_5942
"""Key of the advisory lock that lets one process migrate at a time ("WAYB")."""
_TURN_SECONDS = 0.25
_AGAIN = "run waybill migrate again: what is done stays done, nothing is half done"

_log = logging.getLogger("waybill.migrate")


class StillInUse(Conflict):
    """A contracting migration was asked for while processes run that do not know it."""


def migrate(
    engine: Engine,
    folders: Iterable[Path] = (),
    resources: Iterable[ResourceType] = (),
    *,
    create_tables: bool = False,
    contract: bool = False,
    patience: Patience | None = None,
) -> list[str]:
    """Bring the database up, each migration in a transaction of its own. Safe from several places at once.

    On an empty database all of them run. Else those run that expand, up to the first one that contracts.

    Args:
        engine: Where; its role must own the database, and needs no superuser.
        folders: Folders with migrations of your own resources.
        resources: Those whose search indexes are looked after, where PostgreSQL has ``pg_trgm``.
        create_tables: Also make the tables of registered resources that no migration has made.
        contract: Also run those that contract.
        patience: With locks that others hold.

    Returns:
        Tables of registered resources that are still missing (never any with ``create_tables``), once
        nothing that expands waits any more.

    Raises:
        StillInUse: A process is connected that would not go on working after a contracting migration.
        Contention: A lock could not be had; the message names who holds it. What ran before stays.
    """
    patience, folders = patience or Patience(), list(folders)
    revisions = known_revisions(folders)
    with translated_errors(), _alone(engine, patience) as connection:

        def keep(what: str, work: Any) -> None:
            patience.keep(engine, connection, what, work, _AGAIN)

        is_new = not newest(connection)
        keep("the schema", lambda: _prepare(connection))
        for revision in _runnable(pending(connection, revisions), contract=contract or is_new):
            if revision.kind is Kind.CONTRACT and not is_new:
                _refuse_while_in_use(connection, revisions, revision)
            config = _config(connection, folders)
            keep(f"migration {revision}", lambda: command.upgrade(config, revision.id))  # noqa: B023
        # What waits behind a contract makes its tables itself, once it runs.
        is_up = all(one.kind is Kind.CONTRACT for one in pending(connection, revisions))
        missing = missing_tables(connection) if is_up else []
        if create_tables and missing:
            tables = [metadata.tables[name] for name in missing]
            keep("making tables", lambda: metadata.create_all(connection, tables=tables))
            missing = []
        keep("mending indexes", lambda: mend_indexes(connection))
        keep("search indexes", lambda: ensure_search_indexes(connection, resources))
    return missing


@contextmanager
def _alone(engine: Engine, patience: Patience) -> Iterator[Connection]:
    """A session in which nobody else migrates; it waits for its turn, and waits for locks but briefly.

    It asks again and again instead of waiting in one statement: that would be a transaction for whose end
    the other one's ``CREATE INDEX CONCURRENTLY`` waits.
    """
    with engine.connect() as connection:
        try:
            milliseconds = int(patience.lock_timeout.total_seconds() * 1000)
            connection.execute(text("SET statement_timeout = 0"))
            connection.execute(text(f"SET lock_timeout = {milliseconds}"))
            has_told = False
            while not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": _LOCK}).scalar():
                connection.commit()
                if not has_told:
                    _log.info("another process migrates; waiting for its end")
                    has_told = True
                time.sleep(_TURN_SECONDS)
            connection.commit()
            yield connection
        finally:
            connection.invalidate()  # the session ends, and with it what was set, and the lock


def _prepare(connection: Connection) -> None:
    connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
    _default_search_path(connection)


def _runnable(waiting: Iterable[Revision], *, contract: bool) -> list[Revision]:
    """Those that may run now, in their order: not those that contract, nor what builds on them."""
    left_out: set[str] = set()
    found = []
    for one in waiting:
        if (one.kind is Kind.CONTRACT and not contract) or left_out & set(one.builds_on):
            left_out.add(one.id)
        else:
            found.append(one)
    return found


def _refuse_while_in_use(connection: Connection, revisions: Revisions, contract: Revision) -> None:
    older = older_than(contract, connection, revisions)
    connection.commit()
    if older:
        raise StillInUse(
            f"migration {contract} contracts the schema, and processes run that do not know it: "
            f"{', '.join(map(str, older))}. End them, or roll them to this version; then run "
            "waybill migrate --contract again"
        )


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
    folders = list(folders)
    config = Config()
    config.set_main_option("script_location", str(HOME))
    config.set_main_option("path_separator", "newline")
    locations = [HOME / "versions", *(folder.resolve() for folder in folders)]
    config.set_main_option("version_locations", "\n".join(map(str, locations)))
    config.attributes["connection"] = connection
    config.attributes["revisions"] = known_revisions(folders)
    config.attributes["kind_of"] = _kind_of
    return config


def _kind_of(upgrades: str | None) -> Kind:
    """What a new migration is, by what was found to be done."""
    body = (upgrades or "pass").replace("\n    ", "\n")
    return Kind.CONTRACT if contractions(body) else Kind.EXPAND


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
