"""An index by which an idempotency key goes with its job; autovacuum sooner for tables that are deleted from.

The index is built beside a platform that works.
"""

from collections.abc import Sequence

from alembic import op

from models.migrations.indexes import build_index

revision: str = "0009"
down_revision: str | Sequence[str] | None = "0008"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None
kind: str = "expand"

_INDEX = "idx_idempotency_keys_job_id"
_PRUNED = ("jobs", "job_events", "deliveries", "idempotency_keys")
_VACUUM = ("autovacuum_vacuum_scale_factor", "toast.autovacuum_vacuum_scale_factor")
_SCALE_FACTOR = 0.05
"""Of a table, what may be dead before its space is freed. With PostgreSQL's 0.2 the four took a tenth more."""

_COMMENT = "COMMENT ON COLUMN idempotency_keys.job_id IS "


def upgrade() -> None:
    build_index(_INDEX, "idempotency_keys", ["job_id"])
    op.execute(_COMMENT + "'goes with it'")
    for table in _PRUNED:
        op.execute(f"ALTER TABLE {table} SET ({', '.join(f'{name} = {_SCALE_FACTOR}' for name in _VACUUM)})")


def downgrade() -> None:
    for table in _PRUNED:
        op.execute(f"ALTER TABLE {table} RESET ({', '.join(_VACUUM)})")
    op.execute(_COMMENT + "NULL")
    op.drop_index(_INDEX, table_name="idempotency_keys")
