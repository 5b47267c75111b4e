"""Callbacks: why and since when an endpoint is disabled, and deliveries of two further kinds."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | Sequence[str] | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None
kind: str = "contract"

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column(
        "callback_endpoints",
        sa.Column("failing_since", _TIME, comment="first failure after the last success"),
    )
    op.add_column("callback_endpoints", sa.Column("disabled_at", _TIME))
    op.add_column("callback_endpoints", sa.Column("disabled_reason", sa.Text()))
    op.add_column("deliveries", sa.Column("target", sa.Text(), comment="effect, or routing key of a notice"))
    op.add_column(
        "deliveries", sa.Column("renewed_at", _TIME, comment="when it was last sent again on request")
    )
    # Not validated in the same breath as it is added: that would read the table under an exclusive lock.
    op.execute("ALTER TABLE deliveries DROP CONSTRAINT chk_deliveries_kind")
    op.execute(
        "ALTER TABLE deliveries ADD CONSTRAINT chk_deliveries_kind "
        "CHECK (kind IN ('callback', 'reply', 'events', 'notice', 'effect')) NOT VALID"
    )
    op.execute("ALTER TABLE deliveries VALIDATE CONSTRAINT chk_deliveries_kind")
    op.create_index(
        "idx_deliveries_endpoint_page",
        "deliveries",
        ["endpoint_id", "id"],
        unique=False,
        postgresql_where=sa.text("endpoint_id IS NOT NULL"),
    )
    op.drop_index("idx_deliveries_endpoint_id", table_name="deliveries")
