"""Parts of a parent, and users as a resource: what both need to be like any other."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002_resources"
down_revision: str | Sequence[str] | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_TOKENS_VALID_FROM = """
ALTER TABLE users ADD COLUMN IF NOT EXISTS tokens_valid_from timestamptz
    NOT NULL DEFAULT '1970-01-01 00:00:00+00'
"""

_LAST_ADMIN = """
CREATE FUNCTION waybill_keep_an_admin() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- One at a time: two admins who demote each other must not both see the other one stay.
    PERFORM pg_advisory_xact_lock(hashtextextended('waybill_keep_an_admin', 0));
    IF NOT EXISTS (SELECT FROM users WHERE role = 'admin' AND NOT is_disabled) THEN
        RAISE EXCEPTION 'the last admin cannot go' USING ERRCODE = 'WB001';
    END IF;
    RETURN NULL;
END
$$
"""

_ON_UPDATE = """
CREATE TRIGGER keep_an_admin_on_update AFTER UPDATE OF role, is_disabled ON users FOR EACH ROW
WHEN (OLD.role = 'admin' AND NOT OLD.is_disabled AND (NEW.role <> 'admin' OR NEW.is_disabled))
EXECUTE FUNCTION waybill_keep_an_admin()
"""

_ON_DELETE = """
CREATE TRIGGER keep_an_admin_on_delete AFTER DELETE ON users FOR EACH ROW
WHEN (OLD.role = 'admin' AND NOT OLD.is_disabled)
EXECUTE FUNCTION waybill_keep_an_admin()
"""


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
    op.execute(_TOKENS_VALID_FROM)
    op.execute("COMMENT ON COLUMN users.tokens_valid_from IS 'tokens issued earlier are refused'")
    op.add_column(
        "users",
        sa.Column("owner_id", sa.UUID(), nullable=True, comment="itself: what every resource has"),
    )
    op.execute("UPDATE users SET owner_id = id")
    op.execute(_LAST_ADMIN)
    op.execute(_ON_UPDATE)
    op.execute(_ON_DELETE)


def downgrade() -> None:
    op.execute("DROP TRIGGER keep_an_admin_on_delete ON users")
    op.execute("DROP TRIGGER keep_an_admin_on_update ON users")
    op.execute("DROP FUNCTION waybill_keep_an_admin()")
    op.drop_column("users", "owner_id")
    op.execute("ALTER TABLE users DROP COLUMN IF EXISTS tokens_valid_from")
    op.drop_index(op.f("idx_related_entities_owner_id"), table_name="related_entities")
    op.drop_column("related_entities", "updated_at")
    op.drop_column("related_entities", "owner_id")
    op.drop_column("related_entities", "version")
    op.drop_column("jobs", "parent_id")
