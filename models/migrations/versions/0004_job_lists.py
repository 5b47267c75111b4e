"""Indexes that serve the lists of jobs: by instance, and by the states that are rare.

They are built beside a platform that works.
"""

from collections.abc import Sequence

from alembic import op

from models.migrations.indexes import build_index

revision: str = "0004"
down_revision: str | Sequence[str] | None = "0003"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None
kind: str = "expand"

_IS_NOTABLE = "state NOT IN ('queued', 'succeeded')"
_INDEXES: dict[str, tuple[list[str], str | None]] = {
    "idx_jobs_instance": (["resource", "resource_id", "id"], None),
    "idx_jobs_notable": (["state", "principal_id", "id"], _IS_NOTABLE),
}


def upgrade() -> None:
    """Build what is not there."""
    for name, (columns, condition) in _INDEXES.items():
        build_index(name, "jobs", columns, where=condition)


def downgrade() -> None:
    """Drop them."""
    for name in reversed(_INDEXES):
        op.drop_index(name, table_name="jobs")
