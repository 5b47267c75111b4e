"""The platform's own tables (Core). Resources bring theirs in ``resources/``; migrations make them all.

Tables live in PostgreSQL schema ``waybill``, found through the search path.
"""

from datetime import UTC, datetime

from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Sequence,
    String,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID

from models.identity.principals import Role
from models.job import JobState

SCHEMA = "waybill"

metadata = MetaData(
    naming_convention={
        "ix": "idx_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "chk_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

job_sequence = Sequence("job_sequence", metadata=metadata)


def _one_of(column: str, values: type[JobState] | type[Role] | tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"


_NOW = func.now()
_ID = UUID(as_uuid=True)
_TIME = DateTime(timezone=True)
_IS_OPEN = text("state IN ('queued', 'retrying')")
_IS_NOTABLE = text("state NOT IN ('queued', 'succeeded')")
"""What lists of jobs look for and is rare. A job that simply succeeds never pays for that index."""

users = Table(
    "users",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("email", String(254), nullable=False, unique=True),
    Column("password_hash", Text, nullable=False),
    Column("role", String(16), nullable=False),
    Column("is_disabled", Boolean, nullable=False, server_default=text("false"), default=False),
    Column(
        "tokens_valid_from",
        _TIME,
        nullable=False,
        server_default=text("'1970-01-01 00:00:00+00'"),
        default=datetime.fromtimestamp(0, UTC),
        comment="tokens issued earlier are refused",
    ),
    Column("owner_id", _ID, comment="itself: what every resource has"),
    Column("version", BigInteger, nullable=False, server_default=text("1")),
    Column("created_at", _TIME, nullable=False, server_default=_NOW),
    Column("updated_at", _TIME, nullable=False, server_default=_NOW),
    CheckConstraint(_one_of("role", Role), name="role"),
    Index("idx_users_list", "created_at", "id"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("position", BigInteger, nullable=False, comment="order in its lane"),
    Column("lane", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),
    Column("operation", String(16), nullable=False),
    Column("resource", String(63), nullable=False),
    Column("resource_id", _ID, nullable=False),
    Column("parent_id", _ID, comment="where its resource has a parent"),
    Column("principal_id", _ID, nullable=False),
    Column("role", String(16), comment="the principal's, when it was accepted"),
    Column("door", String(8), nullable=False),
    Column("priority", String(8), nullable=False),
    Column("payload", JSON),
    Column("if_match", BigInteger),
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    Column("announcements", Integer, nullable=False, server_default=text("0")),
    Column("crashes", Integer, nullable=False, server_default=text("0")),
    Column("announce_at", _TIME, comment="when to announce it next; null once it is final"),
    Column("run_at", _TIME),
    Column("expires_at", _TIME),
    Column("created_at", _TIME, nullable=False, server_default=_NOW),
    Column("finished_at", _TIME),
    Column("version", BigInteger),
    Column("result", JSON),
    Column("error", JSONB),
    Column("request_id", String(128), nullable=False),
    Column("callback_endpoint_id", _ID),
    Column("reply_to", Text),
    Column("correlation_id", Text),
    Column("traceparent", Text),
    Column("generation", Integer, nullable=False, server_default=text("1"), comment="grows with a redrive"),
    Column("attempts", JSONB, comment="attempts that failed, with reason and time"),
    Column("crash_log", JSONB, comment="attempts recorded beforehand: worker, time and, where known, signal"),
    Column("announced_at", ARRAY(_TIME), comment="the sweep's latest announcements"),
    Column("discarded_at", _TIME, comment="when an operator put a dead job away for good"),
    CheckConstraint(_one_of("state", JobState), name="state"),
    Index("idx_jobs_principal_id", "principal_id", "id"),
    Index("idx_jobs_instance", "resource", "resource_id", "id"),
    Index("idx_jobs_notable", "state", "principal_id", "id", postgresql_where=_IS_NOTABLE),
    Index("idx_jobs_open_lane", "lane", "position", postgresql_where=_IS_OPEN),
    Index(
        "idx_jobs_announce_at", "priority", "announce_at", postgresql_where=text("announce_at IS NOT NULL")
    ),
    Index("idx_jobs_scheduled", "announce_at", postgresql_where=text("state = 'scheduled'")),
    Index(
        "idx_jobs_expires_at",
        "expires_at",
        postgresql_where=text("expires_at IS NOT NULL AND announce_at IS NOT NULL"),
    ),
    Index("idx_jobs_dead", "finished_at", "id", postgresql_where=text("state = 'dead'")),
    Index("idx_jobs_dead_lane", "lane", "position", postgresql_where=text("state = 'dead'")),
)

job_events = Table(
    "job_events",
    metadata,
    Column("sequence", BigInteger, primary_key=True),
    Column("job_id", _ID, nullable=False, index=True),
    Column("state", String(16), nullable=False),
    Column("at", _TIME, nullable=False),
    Column("detail", JSONB),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("principal_id", _ID, primary_key=True),
    Column("door", String(8), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("job_id", _ID, nullable=False, index=True, comment="goes with it"),
    Column("created_at", _TIME, nullable=False, server_default=_NOW),
)

tombstones = Table(
    "tombstones",
    metadata,
    Column("resource", String(63), primary_key=True),
    Column("resource_id", _ID, primary_key=True),
    Column("version", BigInteger, nullable=False, comment="a re-created id goes on from here"),
    Column("deleted_at", _TIME, nullable=False, server_default=_NOW),
)

callback_endpoints = Table(
    "callback_endpoints",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("owner_id", _ID, ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("url", Text, nullable=False),
    Column("description", Text),
    Column("events", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    Column("secret", Text, nullable=False),
    Column("previous_secret", Text),
    Column("previous_secret_until", _TIME),
    Column("disabled", Boolean, nullable=False, server_default=text("false")),
    Column("created_at", _TIME, nullable=False, server_default=_NOW),
    Column("failing_since", _TIME, comment="first failure after the last success"),
    Column("disabled_at", _TIME),
    Column("disabled_reason", Text),
    Column("missed_since", _TIME, comment="outcomes from then on may have to be made up for; null: none"),
    Column(
        "awaited_xid",
        BigInteger,
        comment="transactions before this one may still bring some; null: not asked yet",
    ),
    Index(
        "idx_callback_endpoints_missed_since",
        "missed_since",
        postgresql_where=text("missed_since IS NOT NULL"),
    ),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("kind", String(16), nullable=False, comment="callback, reply or events"),
    Column("job_id", _ID, comment="the job of a callback or reply"),
    Column("sequences", ARRAY(BigInteger), nullable=False, comment="the job events that it announces"),
    Column("endpoint_id", _ID),
    Column("reply_to", Text),
    Column("state", String(16), nullable=False, server_default=text("'pending'")),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("announce_at", _TIME, comment="when to try next; null once delivered or given up"),
    Column("announced_at", _TIME, comment="when the sweep last announced it"),
    Column("body", LargeBinary, comment="rendered once, identical over retries"),
    Column("response_status", Integer),
    Column("error", Text),
    Column("created_at", _TIME, nullable=False, server_default=_NOW),
    Column("updated_at", _TIME, nullable=False, server_default=_NOW),
    Column("target", Text, comment="effect, or routing key of a notice"),
    Column("renewed_at", _TIME, comment="when it was last sent again on request"),
    CheckConstraint(_one_of("kind", ("callback", "reply", "events", "notice", "effect")), name="kind"),
    CheckConstraint(_one_of("state", ("pending", "retrying", "delivered", "failed")), name="state"),
    Index("idx_deliveries_announce_at", "announce_at", postgresql_where=text("announce_at IS NOT NULL")),
    Index("idx_deliveries_job_id", "job_id", postgresql_where=text("job_id IS NOT NULL")),
    Index(
        "idx_deliveries_endpoint_page",
        "endpoint_id",
        "id",
        postgresql_where=text("endpoint_id IS NOT NULL"),
    ),
)

audit = Table(
    "audit",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("at", _TIME, nullable=False, server_default=_NOW),
    Column("actor_id", _ID, comment="null for the command line"),
    Column("actor", Text, nullable=False, comment="email, or the system user of a command"),
    Column("action", String(32), nullable=False),
    Column("subject", Text, nullable=False, comment="what it was done to, as it was named"),
    Column("outcome", String(16), nullable=False),
    Column("reason", Text),
    Column("detail", JSONB),
    Column("error", JSONB, comment="the problem that it was refused with"),
    Column("request_id", String(128)),
    CheckConstraint(_one_of("outcome", ("done", "foreseen", "refused")), name="outcome"),
    Index("idx_audit_subject", "subject", "id"),
)

dead_messages = Table(
    "dead_messages",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("digest", LargeBinary, nullable=False, unique=True, comment="one row, if collected twice"),
    Column("collected_at", _TIME, nullable=False, server_default=_NOW),
    Column("queue", Text, comment="where it died"),
    Column("reason", Text, comment="the broker's word: rejected, delivery_limit, expired, maxlen"),
    Column("task", Text, comment="null where it is no Celery message"),
    Column("ids", ARRAY(_ID), nullable=False, comment="of the jobs or deliveries that it announced"),
    Column("findings", JSONB, nullable=False, comment="how many of them the ledger held, by state"),
    Column("headers", JSONB),
    Column("content_type", Text),
    Column("size", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False, comment="the first MiB of it"),
    Index("idx_dead_messages_collected_at", "collected_at"),
)

breakers = Table(
    "breakers",
    metadata,
    Column("dependency", String(255), primary_key=True, comment="host:port of a callback receiver"),
    Column("failures", Integer, nullable=False, server_default=text("0")),
    Column("opened_at", _TIME),
    Column("probe_at", _TIME, comment="set while open: when one real delivery may probe"),
)

refresh_families = Table(
    "refresh_families",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("user_id", _ID, ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("role", String(16), nullable=False, comment="at log-in; another one ends it"),
    Column("current_digest", LargeBinary, nullable=False),
    Column("previous_digest", LargeBinary),
    Column("rotated_at", _TIME),
    Column("created_at", _TIME, nullable=False, server_default=_NOW),
    Column("expires_at", _TIME, nullable=False, comment="whatever happens"),
    Column("idle_at", _TIME, nullable=False, index=True, comment="unless used before; or revoked"),
    Column("revoked_at", _TIME),
)

second_factors = Table(
    "second_factors",
    metadata,
    Column("user_id", _ID, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    Column("secret", Text, nullable=False, comment="sealed"),
    Column("last_step", BigInteger, nullable=False, server_default=text("0")),
    Column("confirmed_at", _TIME),
    Column("created_at", _TIME, nullable=False, server_default=_NOW),
)

recovery_codes = Table(
    "recovery_codes",
    metadata,
    Column("user_id", _ID, ForeignKey("second_factors.user_id", ondelete="CASCADE"), primary_key=True),
    Column("digest", LargeBinary, primary_key=True),
)

login_attempts = Table(
    "login_attempts",
    metadata,
    Column("digest", LargeBinary, primary_key=True, comment="keyed: of an account or address"),
    Column("failures", Integer, nullable=False, server_default=text("0")),
    Column("last_at", _TIME, nullable=False, index=True),
    Column("locked_until", _TIME),
    Column("known_until", _TIME, comment="of an account at an address: good since a log-in there"),
)

applied_migrations = Table(
    "applied_migrations",
    metadata,
    Column("revision", String(32), primary_key=True),
    Column("kind", String(16), nullable=False, comment="expand or contract"),
    Column(
        "compatible_since",
        String(32),
        nullable=False,
        comment="of a contract: who knows this revision works on after it",
    ),
    Column("version", Text, comment="of the program that ran it; null where that was not recorded"),
    Column("applied_at", _TIME, nullable=False, server_default=_NOW),
)
