"""Alembic's entry: runs on the connection that ``models.migrate`` hands over. Not for the shell."""

from typing import Any

from alembic import context

from models.tables import SCHEMA, metadata


def _is_ours(_item: Any, name: str | None, kind: str, is_reflected: bool, _other: Any) -> bool:
    """Leave tables alone that no registered resource declares."""
    return not (kind == "table" and is_reflected and name not in metadata.tables)


connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    include_object=_is_ours,
    version_table_schema=SCHEMA,
    compare_server_default=False,
)
with context.begin_transaction():
    context.run_migrations()
