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
