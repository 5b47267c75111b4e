"""Alembic's entry: runs on the connection that ``models.migrate`` hands over. Not for the shell."""

from typing import Any

from alembic import context

from models.schema_fitness import forget, record
from models.search_indexes import PREFIX
from models.tables import SCHEMA, metadata


def _is_ours(_item: Any, name: str | None, kind: str, is_reflected: bool, other: Any) -> bool:
    """Leave tables alone that no registered resource declares, and search indexes, which nothing declares."""
    if not is_reflected or other is not None or name is None:
        return True
    return not (
        (kind == "table" and name not in metadata.tables) or (kind == "index" and name.startswith(PREFIX))
    )


def _record(ctx: Any, step: Any, heads: Any, run_args: Any) -> None:
    """Leave word of each migration, in its own transaction."""
    if step.is_upgrade:
        record(ctx.connection, context.config.attributes["revisions"], step.up_revision_id)
    else:
        forget(ctx.connection, step.up_revision_ids)


connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    include_object=_is_ours,
    version_table_schema=SCHEMA,
    compare_server_default=False,
    transaction_per_migration=True,
    on_version_apply=_record,
)
with context.begin_transaction():
    context.run_migrations()
