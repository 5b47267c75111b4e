"""Parts of a parent, and users as a resource: what both need to be like any other."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0005"
down_revision: str | Sequence[str] | None = "0004"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None
kind: str = "contract"


def upgrade() -> None:
    op.add_column(
        "jobs", sa.Column("parent_id", sa.UUID(), nullable=True, comment="where its resource has a parent")
    )
    # Nothing wrote related entities before: the columns are filled for whoever did so by hand.
    op.add_column(
        "related_entities",
        sa.Column("version", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
    )
    op.add_column("related_entities", sa.Column("owner_id", sa.UUID(), nullable=True))
    op.add_column(
        "related_entities",
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
    )
    op.execute(
        "UPDATE related_entities AS r SET owner_id = e.owner_id FROM entities AS e WHERE e.id = r.entity_id"
    )
    op.alter_column("related_entities", "owner_id", nullable=False)
    op.create_index(op.f("idx_related_entities_owner_id"), "related_entities", ["owner_id"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("idx_related_entities_owner_id"), table_name="related_entities")
    op.drop_column("related_entities", "updated_at")
    op.drop_column("related_entities", "owner_id")
    op.drop_column("related_entities", "version")
    op.drop_column("jobs", "parent_id")
