"""Request headers that mean something to us: each is read whole or refused with 400. No bodies."""

import re
from datetime import UTC, datetime
from uuid import UUID

from models.errors import Invalid
from models.ids import parse_id
from models.job import Priority

MAX_WAIT_SECONDS = 30

_IDEMPOTENCY_KEY = re.compile(r"[\x20-\x7e]{1,255}")
_ENTITY_TAG = re.compile(r'"(0|[1-9][0-9]{0,17})"')
_ENTITY_TAGS = re.compile(r'(?:W/)?"([\x21\x23-\x7e\x80-\xff]*)"')
_WAIT = re.compile(r"[0-9]{1,4}")
_RFC_3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_PRIORITIES = {str(priority): priority for priority in Priority}


def idempotency_key(value: str) -> str:
    """The key as given: 1 to 255 printable ASCII characters."""
    if not _IDEMPOTENCY_KEY.fullmatch(value):
        raise Invalid("Idempotency-Key must be 1 to 255 printable ASCII characters")
    return value


def if_match(value: str) -> int:
    """The one version that the caller demands. Weak tags, lists and ``*`` say something else: refused."""
    match = _ENTITY_TAG.fullmatch(value)
    if match is None:
        raise Invalid('If-Match must be one version in quotes, like "3"')
    return int(match[1])


def matches_any(if_none_match: str | None, tag: int) -> bool:
    """Whether ``If-None-Match`` names ``tag`` (RFC 9110, 13.1.2: weak comparison).

    Raises:
        Invalid: It is neither ``*`` nor a list of entity tags.
    """
    if if_none_match is None:
        return False
    if if_none_match.strip() == "*":
        return True
    tags = [part.strip() for part in if_none_match.split(",") if part.strip()]
    found = [_ENTITY_TAGS.fullmatch(part) for part in tags]
    if not found or None in found:
        raise Invalid("If-None-Match must be * or a list of entity tags in quotes")
    return any(one is not None and one[1] == str(tag) for one in found)


def wait_seconds(prefer: str | None) -> int | None:
    """The N of ``Prefer: wait=N`` (RFC 7240); None where the caller does not want to wait.

    Of a repeated preference the first counts, and unknown ones are ignored, as the RFC has it.

    Raises:
        Invalid: N is no whole number from 0 to 30.
    """
    if prefer is None:
        return None
    for preference in prefer.split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        if name.strip().lower() != "wait":
            continue
        text = value.strip().strip('"')
        if not _WAIT.fullmatch(text) or int(text) > MAX_WAIT_SECONDS:
            raise Invalid(f"Prefer: wait=N wants whole seconds from 0 to {MAX_WAIT_SECONDS}")
        return int(text) or None
    return None


def time_header(name: str, value: str) -> datetime:
    """A time as RFC 3339 writes it, in UTC."""
    if _RFC_3339.fullmatch(value):
        try:
            return datetime.fromisoformat(value.upper()).astimezone(UTC)
        except (ValueError, OverflowError):
            pass
    raise Invalid(f"{name} must be a time like 2030-01-31T12:00:00Z (RFC 3339)")


def priority(value: str) -> Priority:
    """One of high, normal and bulk."""
    try:
        return _PRIORITIES[value]
    except KeyError:
        raise Invalid("Waybill-Priority must be high, normal or bulk") from None


def endpoint_id(value: str) -> UUID:
    """The id of a callback endpoint. Whose it is, intake finds out."""
    found = parse_id(value)
    if found is None:
        raise Invalid("Waybill-Callback must be the id of a callback endpoint")
    return found


def traceparent(value: str | None) -> str | None:
    """W3C Trace Context, version 00; ignored where malformed, as its section 4.3 wants."""
    return value if value is not None and _TRACEPARENT.fullmatch(value) else None
