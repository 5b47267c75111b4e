"""Generations, attempts and crash logs of jobs; the audit trail; collected dead messages."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0007"
down_revision: str | Sequence[str] | None = "0006"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None
kind: str = "expand"

_IS_DEAD = sa.text("state = 'dead'")
_TIME = sa.DateTime(timezone=True)
_JSONB = postgresql.JSONB(astext_type=sa.Text())


def upgrade() -> None:
    for column in (
        sa.Column(
            "generation",
            sa.Integer(),
            server_default=sa.text("1"),
            nullable=False,
            comment="grows with a redrive",
        ),
        sa.Column("attempts", _JSONB, comment="attempts that failed, with reason and time"),
        sa.Column(
            "crash_log",
            _JSONB,
            comment="attempts recorded beforehand: worker, time and, where known, signal",
        ),
        sa.Column("announced_at", sa.ARRAY(_TIME), comment="the sweep's latest announcements"),
        sa.Column("discarded_at", _TIME, comment="when an operator put a dead job away for good"),
    ):
        op.add_column("jobs", column)
    op.create_index("idx_jobs_dead", "jobs", ["finished_at", "id"], postgresql_where=_IS_DEAD)
    op.create_index("idx_jobs_dead_lane", "jobs", ["lane", "position"], postgresql_where=_IS_DEAD)
    op.create_table(
        "audit",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("actor_id", sa.UUID(), comment="null for the command line"),
        sa.Column("actor", sa.Text(), nullable=False, comment="email, or the system user of a command"),
        sa.Column("action", sa.String(length=32), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False, comment="what it was done to, as it was named"),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("detail", _JSONB),
        sa.Column("error", _JSONB, comment="the problem that it was refused with"),
        sa.Column("request_id", sa.String(length=128)),
        sa.CheckConstraint("outcome IN ('done', 'foreseen', 'refused')", name=op.f("chk_audit_outcome")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_index("idx_audit_subject", "audit", ["subject", "id"])
    op.create_table(
        "dead_messages",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False, comment="one row, if collected twice"),
        sa.Column("collected_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("queue", sa.Text(), comment="where it died"),
        sa.Column(
            "reason", sa.Text(), comment="the broker's word: rejected, delivery_limit, expired, maxlen"
        ),
        sa.Column("task", sa.Text(), comment="null where it is no Celery message"),
        sa.Column(
            "ids",
            sa.ARRAY(sa.UUID()),
            nullable=False,
            comment="of the jobs or deliveries that it announced",
        ),
        sa.Column("findings", _JSONB, nullable=False, comment="how many of them the ledger held, by state"),
        sa.Column("headers", _JSONB),
        sa.Column("content_type", sa.Text()),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False, comment="the first MiB of it"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dead_messages")),
        sa.UniqueConstraint("digest", name=op.f("uq_dead_messages_digest")),
    )
    op.create_index("idx_dead_messages_collected_at", "dead_messages", ["collected_at"])


def downgrade() -> None:
    op.drop_table("dead_messages")
    op.drop_table("audit")
    op.drop_index("idx_jobs_dead_lane", table_name="jobs")
    op.drop_index("idx_jobs_dead", table_name="jobs")
    for column in ("discarded_at", "announced_at", "crash_log", "attempts", "generation"):
        op.drop_column("jobs", column)
