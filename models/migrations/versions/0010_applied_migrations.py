"""Which migrations have run, and what they are to processes that do not know them."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0010"
down_revision: str | Sequence[str] | None = "0009"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None
kind: str = "expand"


def upgrade() -> None:
    op.create_table(
        "applied_migrations",
        sa.Column("revision", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False, comment="expand or contract"),
        sa.Column(
            "compatible_since",
            sa.String(length=32),
            nullable=False,
            comment="of a contract: who knows this revision works on after it",
        ),
        sa.Column(
            "version", sa.Text(), comment="of the program that ran it; null where that was not recorded"
        ),
        sa.Column("applied_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("revision", name=op.f("pk_applied_migrations")),
    )


def downgrade() -> None:
    op.drop_table("applied_migrations")
