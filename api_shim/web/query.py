"""Query parameters with a meaning: numbers, choices, ids, read whole or refused with 400."""

from collections.abc import Collection, Mapping
from datetime import datetime
from uuid import UUID

from api_shim.web.request_headers import time_header
from models.errors import Detail, Invalid
from models.ids import parse_id

DEFAULT_LIMIT, MAX_LIMIT = 20, 100
_MAX_DIGITS = 18


def whole_number(query: Mapping[str, str], name: str, low: int, high: int) -> int | None:
    """The parameter as a number from ``low`` to ``high``; None where it is not given."""
    value = query.get(name)
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= _MAX_DIGITS and low <= int(value) <= high):
        raise _invalid(name, f"must be a whole number from {low} to {high}")
    return int(value)


def limit(query: Mapping[str, str]) -> int:
    """How many items the page should hold."""
    return whole_number(query, "limit", 1, MAX_LIMIT) or DEFAULT_LIMIT


def choice(query: Mapping[str, str], name: str, choices: Collection[str]) -> str | None:
    """The parameter, one of ``choices``; None where it is not given."""
    value = query.get(name)
    if value is not None and value not in choices:
        raise _invalid(name, f"must be one of {', '.join(choices)}")
    return value


def identifier(query: Mapping[str, str], name: str) -> UUID | None:
    """The parameter as a UUID; None where it is not given."""
    value = query.get(name)
    if value is None:
        return None
    found = parse_id(value)
    if found is None:
        raise _invalid(name, "must be a UUID")
    return found


def moment(query: Mapping[str, str], name: str) -> datetime | None:
    """The parameter as a time (RFC 3339, as UTC); None where it is not given."""
    value = query.get(name)
    return None if value is None else time_header(name, value)


def words(query: Mapping[str, str], name: str, longest: int) -> str | None:
    """The parameter as text that is not empty; None where it is not given."""
    value = query.get(name)
    if value is not None and not 0 < len(value) <= longest:
        raise _invalid(name, f"must have 1 to {longest} characters")
    return value


def _invalid(name: str, reason: str) -> Invalid:
    return Invalid(f"The query parameter {name} is not valid", details=[Detail(name, reason)])
