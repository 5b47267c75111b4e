"""What callback endpoints missed while they were disabled, and have not been told yet."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

from models.migrations.indexes import build_index

revision: str = "0011"
down_revision: str | Sequence[str] | None = "0010"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None
kind: str = "expand"

_TABLE = "callback_endpoints"
_INDEX = "idx_callback_endpoints_missed_since"


def upgrade() -> None:
    """Once more from the beginning where it was cut short: building the index commits what is before it."""
    op.add_column(
        _TABLE,
        sa.Column(
            "missed_since",
            sa.DateTime(timezone=True),
            comment="outcomes from then on may have to be made up for; null: none",
        ),
        if_not_exists=True,
    )
    op.add_column(
        _TABLE,
        sa.Column(
            "awaited_xid",
            sa.BigInteger(),
            comment="transactions before this one may still bring some; null: not asked yet",
        ),
        if_not_exists=True,
    )
    build_index(_INDEX, _TABLE, ["missed_since"], where="missed_since IS NOT NULL")


def downgrade() -> None:
    op.drop_index(_INDEX, table_name=_TABLE)
    op.drop_column(_TABLE, "awaited_xid")
    op.drop_column(_TABLE, "missed_since")
