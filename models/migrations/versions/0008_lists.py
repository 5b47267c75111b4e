"""Indexes that the lists of instances are read from: filter, order and id in one.

They are built beside a platform that works; the old ones are dropped afterwards.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

from models.migrations.indexes import build_index

revision: str = "0008"
down_revision: str | Sequence[str] | None = "0007"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None
kind: str = "contract"

_NEW: dict[str, tuple[str, list[str]]] = {
    "idx_entities_list": ("entities", ["owner_id", "created_at", "id"]),
    "idx_entities_list_by_name": ("entities", ["owner_id", "name", "id"]),
    "idx_entities_list_all": ("entities", ["created_at", "id"]),
    "idx_entities_list_all_by_name": ("entities", ["name", "id"]),
    "idx_entities_list_all_by_status": ("entities", ["status", "created_at", "id"]),
    "idx_related_entities_list": ("related_entities", ["entity_id", "created_at", "id"]),
    "idx_users_list": ("users", ["created_at", "id"]),
}
_OLD: dict[str, tuple[str, str]] = {
    "idx_entities_owner_id": ("entities", "owner_id"),
    "idx_entities_created_at": ("entities", "created_at DESC"),
    "idx_entities_name": ("entities", "lower(name)"),
    "idx_entities_status": ("entities", "status"),
    "idx_related_entities_owner_id": ("related_entities", "owner_id"),
    "idx_related_entity_id": ("related_entities", "entity_id"),
}
"""What the new ones serve as well, or nothing asked for."""


def upgrade() -> None:
    """Build what is not there, then drop what it replaces."""
    for name, (table, columns) in _NEW.items():
        build_index(name, table, columns)
    for name, (table, _) in _OLD.items():
        op.drop_index(name, table_name=table, if_exists=True)


def downgrade() -> None:
    """The other way round."""
    for name, (table, column) in _OLD.items():
        op.create_index(name, table, [sa.literal_column(column)])
    for name, (table, _) in _NEW.items():
        op.drop_index(name, table_name=table)
