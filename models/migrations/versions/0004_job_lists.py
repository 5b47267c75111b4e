"""Indexes that serve the lists of jobs: by instance, and by the states that are rare.

Building them holds up whoever writes jobs. On a large ledger build them beforehand, beside the running
platform, by ``CREATE INDEX CONCURRENTLY`` under these names: then nothing is left to do here.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | Sequence[str] | None = "0003"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_IS_NOTABLE = "state NOT IN ('queued', 'succeeded')"
_INDEXES: dict[str, tuple[list[str], str | None]] = {
    "idx_jobs_instance": (["resource", "resource_id", "id"], None),
    "idx_jobs_notable": (["state", "principal_id", "id"], _IS_NOTABLE),
}


def upgrade() -> None:
    """Build what is not there."""
    for name, (columns, condition) in _INDEXES.items():
        where = None if condition is None else sa.text(condition)
        op.create_index(name, "jobs", columns, postgresql_where=where, if_not_exists=True)


def downgrade() -> None:
    """Drop them."""
    for name in reversed(_INDEXES):
        op.drop_index(name, table_name="jobs")
