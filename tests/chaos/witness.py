"""The witness: a trigger on entities (and brittles) that records every change in its own transaction.

It is the harness's own, so what it says does not depend on the ledger, whose word it is held against. Each
operation of the workload leaves a *nonce* in the entity's metadata, so one row of the witness tells which
operations a change consists of: a batch may fold several into one write.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg.rows import args_row

from tests.chaos.ledger import connect

_INSTALL = """
CREATE TABLE IF NOT EXISTS chaos_witness (
    n bigserial PRIMARY KEY, entity_id uuid NOT NULL, action text NOT NULL, nonces text[] NOT NULL,
    from_version bigint, version bigint NOT NULL, transaction_id text NOT NULL, at timestamptz NOT NULL
);
CREATE OR REPLACE FUNCTION chaos_testify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO chaos_witness (entity_id, action, nonces, from_version, version, transaction_id, at)
        VALUES (OLD.id, 'delete', '{}', OLD.version, OLD.version + 1,
                pg_current_xact_id()::text, clock_timestamp());
        RETURN OLD;
    END IF;
    INSERT INTO chaos_witness (entity_id, action, nonces, from_version, version, transaction_id, at)
    SELECT NEW.id, lower(TG_OP), array(
               SELECT key FROM jsonb_object_keys(COALESCE(NEW.metadata, '{}')) AS key
               WHERE key LIKE 'n-%' AND (TG_OP = 'INSERT' OR NOT COALESCE(OLD.metadata, '{}') ? key)),
           CASE WHEN TG_OP = 'UPDATE' THEN OLD.version END, NEW.version,
           pg_current_xact_id()::text, clock_timestamp();
    RETURN NEW;
END $$;
CREATE OR REPLACE TRIGGER chaos_witness AFTER INSERT OR UPDATE OR DELETE ON entities
FOR EACH ROW EXECUTE FUNCTION chaos_testify();
CREATE OR REPLACE TRIGGER chaos_witness AFTER INSERT OR UPDATE OR DELETE ON brittles
FOR EACH ROW EXECUTE FUNCTION chaos_testify();
"""


@dataclass(frozen=True, slots=True)
class Witnessed:
    """One change of one entity.

    Attributes:
        n: Grows; of one entity's changes the order in which they were made.
        action: insert, update or delete.
        nonces: Of the operations that are in it, in no order.
        from_version: None of an insert.
        at: POSIX seconds, by the database's clock.
    """

    n: int
    entity: str
    action: str
    nonces: tuple[str, ...]
    from_version: int | None
    version: int
    transaction_id: str
    at: float = 0.0


def install(database_url: str) -> None:
    """Put the witness into a platform's database."""
    with connect(database_url) as connection:
        connection.execute(_INSTALL)


def testimonies(database_url: str) -> Sequence[Witnessed]:
    """All that it saw, in its order."""
    query = """SELECT n, entity_id::text, action, nonces, from_version, version, transaction_id,
        extract(epoch FROM at)::float8 FROM chaos_witness ORDER BY n"""
    with connect(database_url) as connection, connection.cursor(row_factory=args_row(_witnessed)) as cursor:
        return cursor.execute(query).fetchall()


def _witnessed(
    n: int,
    entity: str,
    action: str,
    nonces: list[str],
    from_version: int | None,
    version: int,
    transaction_id: str,
    at: float,
) -> Witnessed:
    return Witnessed(n, entity, action, tuple(nonces), from_version, version, transaction_id, at)
