"""The ledger and the built-in resources."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0001"
down_revision: str | Sequence[str] | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None
kind: str = "expand"

_UUID7 = """
CREATE FUNCTION waybill_uuid7() RETURNS uuid LANGUAGE sql VOLATILE PARALLEL SAFE AS $$
    -- RFC 9562: 48 bits of milliseconds, then version 7 over the random bytes of a version 4.
    SELECT encode(
        set_bit(set_bit(
            overlay(
                uuid_send(gen_random_uuid())
                PLACING substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
                FROM 1 FOR 6
            ), 52, 1), 53, 1),
        'hex')::uuid
$$
"""


def upgrade() -> None:
    op.execute("CREATE SEQUENCE job_sequence")
    op.execute(_UUID7)
    op.create_table(
        "breakers",
        sa.Column(
            "dependency", sa.String(length=255), nullable=False, comment="host:port of a callback receiver"
        ),
        sa.Column("failures", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "probe_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="set while open: when one real delivery may probe",
        ),
        sa.PrimaryKeyConstraint("dependency", name=op.f("pk_breakers")),
    )
    op.create_table(
        "deliveries",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False, comment="callback, reply or events"),
        sa.Column("job_id", sa.UUID(), nullable=True, comment="the job of a callback or reply"),
        sa.Column(
            "sequences", sa.ARRAY(sa.BigInteger()), nullable=False, comment="the job events that it announces"
        ),
        sa.Column("endpoint_id", sa.UUID(), nullable=True),
        sa.Column("reply_to", sa.Text(), nullable=True),
        sa.Column("state", sa.String(length=16), server_default=sa.text("'pending'"), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "announce_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when to try next; null once delivered or given up",
        ),
        sa.Column(
            "announced_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when the sweep last announced it",
        ),
        sa.Column("body", sa.LargeBinary(), nullable=True, comment="rendered once, identical over retries"),
        sa.Column("response_status", sa.Integer(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("kind IN ('callback', 'reply', 'events')", name=op.f("chk_deliveries_kind")),
        sa.CheckConstraint(
            "state IN ('pending', 'retrying', 'delivered', 'failed')", name=op.f("chk_deliveries_state")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deliveries")),
    )
    op.create_index(
        "idx_deliveries_announce_at",
        "deliveries",
        ["announce_at"],
        unique=False,
        postgresql_where=sa.text("announce_at IS NOT NULL"),
    )
    op.create_index(
        "idx_deliveries_endpoint_id",
        "deliveries",
        ["endpoint_id"],
        unique=False,
        postgresql_where=sa.text("endpoint_id IS NOT NULL"),
    )
    op.create_index(
        "idx_deliveries_job_id",
        "deliveries",
        ["job_id"],
        unique=False,
        postgresql_where=sa.text("job_id IS NOT NULL"),
    )
    op.create_table(
        "entities",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("status", sa.String(length=16), server_default=sa.text("'DRAFT'"), nullable=False),
        sa.Column("metadata", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("version", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("owner_id", sa.UUID(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("status IN ('DRAFT', 'ACTIVE', 'INACTIVE', 'ARCHIVED')", name=op.f("chk_status")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_entities")),
    )
    op.create_index(
        "idx_entities_created_at", "entities", [sa.literal_column("created_at DESC")], unique=False
    )
    op.create_index("idx_entities_name", "entities", [sa.literal_column("lower(name)")], unique=False)
    op.create_index(op.f("idx_entities_owner_id"), "entities", ["owner_id"], unique=False)
    op.create_index("idx_entities_status", "entities", ["status"], unique=False)
    op.create_table(
        "idempotency_keys",
        sa.Column("principal_id", sa.UUID(), nullable=False),
        sa.Column("door", sa.String(length=8), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("job_id", sa.UUID(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("principal_id", "door", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_table(
        "job_events",
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("job_id", sa.UUID(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("detail", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_job_events")),
    )
    op.create_index(op.f("idx_job_events_job_id"), "job_events", ["job_id"], unique=False)
    op.create_table(
        "jobs",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False, comment="order in its lane"),
        sa.Column("lane", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("operation", sa.String(length=16), nullable=False),
        sa.Column("resource", sa.String(length=63), nullable=False),
        sa.Column("resource_id", sa.UUID(), nullable=False),
        sa.Column("principal_id", sa.UUID(), nullable=False),
        sa.Column("door", sa.String(length=8), nullable=False),
        sa.Column("priority", sa.String(length=8), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=True),
        sa.Column("if_match", sa.BigInteger(), nullable=True),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("announcements", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("crashes", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "announce_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when to announce it next; null once it is final",
        ),
        sa.Column("run_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("version", sa.BigInteger(), nullable=True),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.Column("error", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("request_id", sa.String(length=128), nullable=False),
        sa.Column("callback_endpoint_id", sa.UUID(), nullable=True),
        sa.Column("reply_to", sa.Text(), nullable=True),
        sa.Column("correlation_id", sa.Text(), nullable=True),
        sa.Column("traceparent", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "state IN ('scheduled', 'queued', 'retrying', 'succeeded', 'failed', 'cancelled', 'expired', 'dead')",
            name=op.f("chk_jobs_state"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index(
        "idx_jobs_announce_at",
        "jobs",
        ["priority", "announce_at"],
        unique=False,
        postgresql_where=sa.text("announce_at IS NOT NULL"),
    )
    op.create_index(
        "idx_jobs_scheduled",
        "jobs",
        ["announce_at"],
        unique=False,
        postgresql_where=sa.text("state = 'scheduled'"),
    )
    op.create_index(
        "idx_jobs_expires_at",
        "jobs",
        ["expires_at"],
        unique=False,
        postgresql_where=sa.text("expires_at IS NOT NULL AND announce_at IS NOT NULL"),
    )
    op.create_index(
        "idx_jobs_open_lane",
        "jobs",
        ["lane", "position"],
        unique=False,
        postgresql_where=sa.text("state IN ('queued', 'retrying')"),
    )
    op.create_index("idx_jobs_principal_id", "jobs", ["principal_id", "id"], unique=False)
    op.create_table(
        "tombstones",
        sa.Column("resource", sa.String(length=63), nullable=False),
        sa.Column("resource_id", sa.UUID(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False, comment="a re-created id goes on from here"),
        sa.Column("deleted_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("resource", "resource_id", name=op.f("pk_tombstones")),
    )
    op.create_table(
        "users",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("email", sa.String(length=254), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("is_disabled", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("version", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("role IN ('admin', 'user', 'guest')", name=op.f("chk_users_role")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("email", name=op.f("uq_users_email")),
    )
    op.create_table(
        "callback_endpoints",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("owner_id", sa.UUID(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("events", sa.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("previous_secret", sa.Text(), nullable=True),
        sa.Column("previous_secret_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("disabled", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["owner_id"], ["users.id"], name=op.f("fk_callback_endpoints_owner_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_callback_endpoints")),
    )
    op.create_index(op.f("idx_callback_endpoints_owner_id"), "callback_endpoints", ["owner_id"], unique=False)
    op.create_table(
        "related_entities",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("entity_id", sa.Uuid(), nullable=False),
        sa.Column("type", sa.String(length=50), nullable=False),
        sa.Column("value", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("sort_order", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", sa.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["entity_id"], ["entities.id"], name="fk_related_entity", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_related_entities")),
    )
    op.create_index("idx_related_entity_id", "related_entities", ["entity_id"], unique=False)


def downgrade() -> None:
    op.drop_index("idx_related_entity_id", table_name="related_entities")
    op.drop_table("related_entities")
    op.drop_index(op.f("idx_callback_endpoints_owner_id"), table_name="callback_endpoints")
    op.drop_table("callback_endpoints")
    op.drop_table("users")
    op.drop_table("tombstones")
    op.drop_index("idx_jobs_principal_id", table_name="jobs")
    op.drop_index(
        "idx_jobs_open_lane", table_name="jobs", postgresql_where=sa.text("state IN ('queued', 'retrying')")
    )
    op.drop_index(
        "idx_jobs_expires_at",
        table_name="jobs",
        postgresql_where=sa.text("expires_at IS NOT NULL AND announce_at IS NOT NULL"),
    )
    op.drop_index(
        "idx_jobs_announce_at", table_name="jobs", postgresql_where=sa.text("announce_at IS NOT NULL")
    )
    op.drop_index("idx_jobs_scheduled", table_name="jobs", postgresql_where=sa.text("state = 'scheduled'"))
    op.drop_table("jobs")
    op.drop_index(op.f("idx_job_events_job_id"), table_name="job_events")
    op.drop_table("job_events")
    op.drop_table("idempotency_keys")
    op.drop_index("idx_entities_status", table_name="entities")
    op.drop_index(op.f("idx_entities_owner_id"), table_name="entities")
    op.drop_index("idx_entities_name", table_name="entities")
    op.drop_index("idx_entities_created_at", table_name="entities")
    op.drop_table("entities")
    op.drop_index(
        "idx_deliveries_job_id", table_name="deliveries", postgresql_where=sa.text("job_id IS NOT NULL")
    )
    op.drop_index(
        "idx_deliveries_endpoint_id",
        table_name="deliveries",
        postgresql_where=sa.text("endpoint_id IS NOT NULL"),
    )
    op.drop_index(
        "idx_deliveries_announce_at",
        table_name="deliveries",
        postgresql_where=sa.text("announce_at IS NOT NULL"),
    )
    op.drop_table("deliveries")
    op.drop_table("breakers")
    op.execute("DROP FUNCTION waybill_uuid7()")
    op.execute("DROP SEQUENCE job_sequence")
