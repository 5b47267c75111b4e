"""Identifiers: UUIDv7 made here, and the time read back out of one. No storage."""

from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from uuid import UUID

from uuid_utils.compat import uuid7

__all__ = ["created_at", "earliest_id", "lane_key", "new_id", "parse_id"]


def new_id() -> UUID:
    """A fresh UUIDv7 (RFC 9562): sorts by creation time to the millisecond."""
    return uuid7()


def parse_id(text: str) -> UUID | None:
    """The UUID that ``text`` spells canonically (36 characters, either case), else None."""
    if len(text) != 36:
        return None
    try:
        found = UUID(text)
    except ValueError:
        return None
    # UUID() also takes braces, missing hyphens and odd digits; one id should have one spelling.
    return found if str(found) == text.lower() else None


def created_at(identifier: UUID) -> datetime | None:
    """The creation time inside a UUIDv7; None for any other version, and beyond the year 9999."""
    if identifier.version != 7:
        return None
    try:
        return datetime.fromtimestamp((identifier.int >> 80) / 1000, UTC)
    except (ValueError, OverflowError):
        return None


def earliest_id(moment: datetime, *, offset: timedelta = timedelta(0)) -> UUID:
    """The smallest UUIDv7 of ``moment`` plus ``offset``: a bound to compare others with.

    Times before 1970 have the smallest of all.
    """
    milliseconds = int(moment.timestamp() * 1000) + offset // timedelta(milliseconds=1)
    return UUID(int=min(max(milliseconds, 0), 2**48 - 1) << 80)


def lane_key(resource: str, identifier: UUID) -> int:
    """The lane of a resource instance: a signed 64-bit key, as ``pg_advisory_xact_lock`` takes it.

    Two instances may share a lane by collision: they then take turns, and nothing else happens.
    """
    digest = blake2b(identifier.bytes, digest_size=8, person=resource.encode()[:16]).digest()
    return int.from_bytes(digest, "big", signed=True)
