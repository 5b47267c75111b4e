"""Trigram indexes of the columns that ``?q=`` looks into, wherever PostgreSQL has ``pg_trgm``. No queries.

They are no migrations: whether there are any depends on the server, and a search finds the same without
them, only slower. So every ``waybill migrate`` looks what is missing, for your own resources as for the
built-in ones, and a server that gets the extension later gets the indexes with the next one.
"""

import logging
from collections.abc import Iterable

from sqlalchemy import Connection, String, exc, text

from models.index_building import ensure_index
from models.resource_type import ResourceType
from models.tables import SCHEMA

PREFIX = "trgm_"
"""What the names of these indexes begin with."""

_LONGEST_NAME = 63
_log = logging.getLogger("waybill.migrate")


def ensure_search_indexes(connection: Connection, resources: Iterable[ResourceType]) -> None:
    """Build the search indexes that are missing, if there is ``pg_trgm`` or it may be created.

    They are built beside a platform that works, except on an empty table. Commits.

    Args:
        connection: With the right to create indexes; in no transaction with anything undone.
        resources: Whose tables; those without a table yet are left out.
    """
    schema = _schema_of_trigrams(connection)
    if schema is None:
        return
    quote = connection.dialect.identifier_preparer.quote
    for resource in resources:
        table = resource.table
        if resource.parent is not None:
            continue  # a search among the parts of one parent looks through those
        if connection.dialect.has_table(connection, table.name, schema=SCHEMA):
            for name in resource.searched:
                column = table.columns[name]
                if not isinstance(column.type, String):
                    continue
                ensure_index(
                    connection,
                    index_name(table.name, column.name),
                    f"{quote(SCHEMA)}.{quote(table.name)}",
                    f"USING gin (lower({quote(column.name)}) {quote(schema)}.gin_trgm_ops)",
                )
    connection.commit()


def index_name(table: str, column: str) -> str:
    """What the search index of a column is called."""
    return f"{PREFIX}{table}_{column}"[:_LONGEST_NAME]


def _schema_of_trigrams(connection: Connection) -> str | None:
    """Where ``gin_trgm_ops`` is: another's ``pg_trgm`` may lie outside our search path. None: nowhere."""
    found: str | None = connection.execute(_SCHEMA_OF_EXTENSION).scalar()
    if found is not None or not connection.execute(_IS_AVAILABLE).scalar_one():
        return found
    try:
        with connection.begin_nested():
            connection.execute(text(f"CREATE EXTENSION pg_trgm SCHEMA {SCHEMA}"))
    except exc.DBAPIError as error:
        if error.connection_invalidated:
            raise
        _log.warning(
            "search goes without trigram indexes: pg_trgm is there and could not be created; "
            "have its CREATE EXTENSION run by who may, then `waybill migrate` again",
            extra={"reason": str(error.orig)},
        )
        return None
    return SCHEMA


_SCHEMA_OF_EXTENSION = text(
    "SELECT nspname FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace "
    "WHERE extname = 'pg_trgm'"
)
_IS_AVAILABLE = text("SELECT count(*) > 0 FROM pg_available_extensions WHERE name = 'pg_trgm'")
