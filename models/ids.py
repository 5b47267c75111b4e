"""Identifiers: UUIDv7 made here, and the time read back out of one. No storage."""

from datetime import UTC, datetime
from hashlib import blake2b
from uuid import UUID

from uuid_utils.compat import uuid7

__all__ = ["created_at", "lane_key", "new_id", "parse_id"]


def new_id() -> UUID:
    """A fresh UUIDv7 (RFC 9562): sorts by creation time to the millisecond."""
    return uuid7()


def parse_id(text: str) -> UUID | None:
    """The UUID that ``text`` spells canonically (36 characters), else None."""
    if len(text) != 36:
        return None
    try:
        return UUID(text)
    except ValueError:
        return None


def created_at(identifier: UUID) -> datetime | None:
    """The creation time inside a UUIDv7; None for any other version."""
    if identifier.version != 7:
        return None
    return datetime.fromtimestamp((identifier.int >> 80) / 1000, UTC)


def lane_key(resource: str, identifier: UUID) -> int:
    """The lane of a resource instance: a signed 64-bit key, as ``pg_advisory_xact_lock`` takes it.

    Two instances may share a lane by collision: they then take turns, and nothing else happens.
    """
    digest = blake2b(identifier.bytes, digest_size=8, person=resource.encode()[:16]).digest()
    return int.from_bytes(digest, "big", signed=True)
