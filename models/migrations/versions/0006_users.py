"""Users as a resource: whose they are, that an admin is left, and that withdrawn tokens stay withdrawn."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0006"
down_revision: str | Sequence[str] | None = "0005"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None
kind: str = "expand"

_KEEP_AN_ADMIN = """
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

_WITHDRAW_TOKENS = """
CREATE FUNCTION waybill_withdraw_tokens() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- Called with the row locked: a log-in that held it until now must not outlive the change.
    NEW.tokens_valid_from := CASE
        WHEN NEW.tokens_valid_from > OLD.tokens_valid_from THEN clock_timestamp()
        ELSE OLD.tokens_valid_from
    END;
    RETURN NEW;
END
$$
"""

_ON_WITHDRAWAL = """
CREATE TRIGGER withdraw_tokens BEFORE UPDATE OF tokens_valid_from ON users FOR EACH ROW
WHEN (NEW.tokens_valid_from IS DISTINCT FROM OLD.tokens_valid_from)
EXECUTE FUNCTION waybill_withdraw_tokens()
"""


def upgrade() -> None:
    op.add_column(
        "users",
        sa.Column("owner_id", sa.UUID(), nullable=True, comment="itself: what every resource has"),
    )
    op.execute("UPDATE users SET owner_id = id")
    op.add_column(
        "jobs",
        sa.Column(
            "role", sa.String(length=16), nullable=True, comment="the principal's, when it was accepted"
        ),
    )
    for statement in (_KEEP_AN_ADMIN, _ON_UPDATE, _ON_DELETE, _WITHDRAW_TOKENS, _ON_WITHDRAWAL):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TRIGGER withdraw_tokens ON users")
    op.execute("DROP TRIGGER keep_an_admin_on_delete ON users")
    op.execute("DROP TRIGGER keep_an_admin_on_update ON users")
    op.execute("DROP FUNCTION waybill_withdraw_tokens()")
    op.execute("DROP FUNCTION waybill_keep_an_admin()")
    op.drop_column("jobs", "role")
    op.drop_column("users", "owner_id")
