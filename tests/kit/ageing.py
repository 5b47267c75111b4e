"""Making what a test has just done look as if it had happened long ago. No clock is turned."""

from datetime import timedelta
from uuid import UUID

from tests.kit.platform import Platform

_MOVES = (
    "UPDATE jobs SET id = :older, created_at = created_at - :by, finished_at = finished_at - :by, "
    "discarded_at = discarded_at - :by WHERE id = :id",
    "UPDATE job_events SET job_id = :older, at = at - :by WHERE job_id = :id",
    "UPDATE deliveries SET job_id = :older, created_at = created_at - :by, updated_at = updated_at - :by "
    "WHERE job_id = :id",
    "UPDATE idempotency_keys SET job_id = :older, created_at = created_at - :by WHERE job_id = :id",
)


def aged(platform: Platform, job_id: UUID, by: timedelta, *, accepted: timedelta | None = None) -> UUID:
    """A job and what hangs on it, moved into the past; its id, which carries its time, afterwards.

    Args:
        platform: Where it is.
        job_id: As it is now.
        by: How far everything is moved.
        accepted: How far its acceptance is, where that was earlier or later.
    """
    older = earlier(job_id, accepted or by)
    for move in _MOVES:
        platform.rows(move, older=older, by=by, id=job_id)
    for (delivery,) in platform.rows("SELECT id FROM deliveries WHERE job_id = :id", id=older):
        _rename(platform, delivery, by)
    return older


def published(platform: Platform, ago: timedelta) -> None:
    """Have every delivery of job events so far been published, that long ago."""
    for (delivery,) in platform.rows(
        "SELECT id FROM deliveries WHERE kind = 'events' AND announce_at IS NOT NULL"
    ):
        platform.rows(
            "UPDATE deliveries SET state = 'delivered', announce_at = NULL, created_at = created_at - :ago,"
            " updated_at = updated_at - :ago WHERE id = :id",
            ago=ago,
            id=delivery,
        )
        _rename(platform, delivery, ago)


def earlier(identifier: UUID, by: timedelta) -> UUID:
    """The same UUIDv7, made that much earlier."""
    return UUID(int=identifier.int - ((by // timedelta(milliseconds=1)) << 80))


def _rename(platform: Platform, delivery: UUID, by: timedelta) -> None:
    platform.rows(
        "UPDATE deliveries SET id = :older WHERE id = :id", older=earlier(delivery, by), id=delivery
    )


def many_finished(platform: Platform, count: int, ago: timedelta = timedelta(days=40)) -> None:
    """So many jobs that ended, a second apart, before that; each with two events, a callback and a key."""
    platform.rows(MANY, ada=platform.ada.id, count=count, ago=ago)


_ID_AT = """CAST(lpad(to_hex(CAST(extract(epoch FROM at) * 1000 AS bigint)), 12, '0') || '7000' || {kind}
    || lpad(to_hex(n), 12, '0') AS uuid)"""

MANY = f"""
WITH numbers AS (
    SELECT nextval('job_sequence') AS n, now() - :ago - s * interval '1 second' AS at
    FROM generate_series(1, :count) AS s
), made AS (
    INSERT INTO jobs (id, sequence, position, lane, state, operation, resource, resource_id, principal_id,
                      door, priority, payload, created_at, finished_at, request_id)
    SELECT {_ID_AT.format(kind="'8000'")}, n, n, n, 'succeeded', 'create', 'entities', gen_random_uuid(),
           :ada, 'http', 'normal', json_build_object('name', repeat('x', 200)), at, at, 'r'
    FROM numbers
    RETURNING id, sequence AS n, created_at AS at
), events AS (
    INSERT INTO job_events (sequence, job_id, state, at)
    SELECT -2 * n, id, 'queued', at FROM made UNION ALL SELECT -2 * n - 1, id, 'succeeded', at FROM made
), callbacks AS (
    INSERT INTO deliveries (id, kind, job_id, sequences, state, updated_at)
    SELECT {_ID_AT.format(kind="'8001'")}, 'callback', id, ARRAY[n], 'delivered', at FROM made
    UNION ALL
    SELECT {_ID_AT.format(kind="'8002'")}, 'events', NULL, ARRAY[n], 'delivered', at FROM made
)
INSERT INTO idempotency_keys (principal_id, door, key, fingerprint, job_id)
SELECT :ada, 'http', id, '', id FROM made
"""
"""Takes ``ada`` (a principal's id), ``count`` and ``ago``."""
