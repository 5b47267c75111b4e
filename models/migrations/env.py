"""Alembic's entry: runs on the connection that ``models.migrate`` hands over. Not for the shell."""

from typing import Any

from alembic import context

from models.search_indexes import PREFIX
from models.tables import SCHEMA, metadata


def _is_ours(_item: Any, name: str | None, kind: str, is_reflected: bool, other: Any) -> bool:
    """Leave tables alone that no registered resource declares, and search indexes, which nothing declares."""
    if not is_reflected or other is not None or name is None:
        return True
    return not (
        (kind == "table" and name not in metadata.tables) or (kind == "index" and name.startswith(PREFIX))
    )


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
