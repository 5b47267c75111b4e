"""What migrations build indexes by: see ``models/index_building.py``, here within Alembic's transaction."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from alembic import op
from sqlalchemy import Connection

from models.index_building import ensure_index


def build_index(name: str, table: str, columns: Sequence[str], *, where: str | None = None) -> None:
    """Build an index that is not there. Everything else in the migration must be repeatable."""
    definition = f"({', '.join(columns)})" + (f" WHERE {where}" if where else "")
    ensure_index(op.get_bind(), name, table, definition, _outside)


@contextmanager
def _outside() -> Iterator[Connection]:
    with op.get_context().autocommit_block():
        yield op.get_bind()
