"""Building an index beside a platform that works: nobody who writes is held up. Which ones: not here.

An interrupted ``CREATE INDEX CONCURRENTLY`` leaves an index that is INVALID: kept up at each write, used by
no query. It is found, dropped and built anew. What was begun on the connection is committed in between, so
everything that surrounds a call must be repeatable.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from sqlalchemy import Connection, text

from models.tables import SCHEMA

_BUILD_WAITS = "5min"
"""A build waits for older transactions to end, and holds up nobody meanwhile."""


@contextmanager
def committing(connection: Connection) -> Iterator[Connection]:
    """Commit what was begun; within, each statement commits itself."""
    connection.commit()
    before = connection.get_isolation_level()
    connection.commit()
    connection.execution_options(isolation_level="AUTOCOMMIT")
    try:
        yield connection
    finally:
        connection.rollback()
        connection.execution_options(isolation_level=before)


def ensure_index(
    connection: Connection,
    name: str,
    table: str,
    definition: str,
    outside: Callable[[], AbstractContextManager[Connection]] | None = None,
) -> None:
    """Build an index that is not there or is INVALID: concurrently, unless its table is empty.

    Args:
        connection: Whose session waits for other locks as long as it is set to.
        name: Of the index.
        table: As SQL.
        definition: What follows the table in SQL: columns, method, condition.
        outside: Gives the connection outside of its transaction; :func:`committing` by default.
    """
    quoted = connection.dialect.identifier_preparer.quote(name)
    found = connection.execute(_FIND, {"name": name, "schema": SCHEMA}).scalar()
    if found is True:
        return
    if found is None and not connection.execute(text(f"SELECT EXISTS (SELECT FROM {table})")).scalar_one():
        connection.execute(text(f"CREATE INDEX {quoted} ON {table} {definition}"))
        return
    with outside() if outside is not None else committing(connection) as alone:
        if found is False:
            alone.execute(text(f"DROP INDEX CONCURRENTLY IF EXISTS {SCHEMA}.{quoted}"))
        with _unhurried(alone):
            alone.execute(text(f"CREATE INDEX CONCURRENTLY {quoted} ON {table} {definition}"))


def invalid_indexes(connection: Connection) -> list[str]:
    """Indexes of ours that serve nobody, because their building was cut short or is under way."""
    return list(connection.execute(_INVALID, {"schema": SCHEMA}).scalars())


def mend_indexes(connection: Connection) -> None:
    """Build every INVALID index anew, beside a platform that works. Commits."""
    broken = invalid_indexes(connection)
    if not broken:
        return
    quote = connection.dialect.identifier_preparer.quote
    with committing(connection) as alone:
        for name in broken:
            if _LEFT_OVER.search(name):
                alone.execute(text(f"DROP INDEX CONCURRENTLY IF EXISTS {SCHEMA}.{quote(name)}"))
            else:
                with _unhurried(alone):
                    alone.execute(text(f"REINDEX INDEX CONCURRENTLY {SCHEMA}.{quote(name)}"))


@contextmanager
def _unhurried(alone: Connection) -> Iterator[None]:
    patience = alone.execute(text("SHOW lock_timeout")).scalar_one()
    alone.execute(text(f"SET lock_timeout = '{_BUILD_WAITS}'"))
    try:
        yield
    finally:
        alone.execute(text(f"SET lock_timeout = '{patience}'"))


_LEFT_OVER = re.compile(r"_cc(new|old)\d*$")
"""How PostgreSQL names what an interrupted REINDEX CONCURRENTLY leaves behind."""


_FIND = text(
    "SELECT i.indisvalid FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid "
    "JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = :schema AND c.relname = :name"
)
_INVALID = text(
    "SELECT c.relname FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid "
    "JOIN pg_namespace AS n ON n.oid = c.relnamespace "
    "WHERE n.nspname = :schema AND NOT i.indisvalid ORDER BY c.relname"
)
