"""Quotas: how many requests of a kind one caller may send in how long. No counting, no HTTP."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Limit(StrEnum):
    """Which quota a route draws on, as the contract has them. Set by name in a setting: never renamed."""

    LIST = "list"
    READ = "read"
    WRITE = "write"
    DELETE = "delete"
    BULK = "bulk"
    JOBS = "jobs"
    CONTROL = "control"
    LOGIN = "login"
    ANONYMOUS = "anonymous"
    """What an address may send to limited routes without a valid token. It gets 401 each time."""


@dataclass(frozen=True, slots=True)
class Quota:
    """So many requests in any stretch of so many seconds."""

    amount: int
    seconds: int


_MINUTE = 60
DEFAULT_QUOTAS: Mapping[Limit, Quota] = {
    Limit.LIST: Quota(100, _MINUTE),
    Limit.READ: Quota(200, _MINUTE),
    Limit.WRITE: Quota(50, _MINUTE),
    Limit.DELETE: Quota(20, _MINUTE),
    Limit.BULK: Quota(20, _MINUTE),
    Limit.JOBS: Quota(600, _MINUTE),
    Limit.CONTROL: Quota(50, _MINUTE),
    Limit.LOGIN: Quota(60, _MINUTE),
    Limit.ANONYMOUS: Quota(600, _MINUTE),
}

_UNITS = {"second": 1, "minute": _MINUTE, "hour": 60 * _MINUTE}
_LIMITS = {str(limit): limit for limit in Limit}
_QUOTA = re.compile(r"([1-9][0-9]{0,8})/(second|minute|hour)")


def parse_quotas(text: str) -> dict[Limit, Quota]:
    """The quotas that a setting asks for; a limit that is left out of the answer does not bind.

    ``on`` are the contract's, ``off`` none; ``write=500/minute,delete=off`` are the contract's but for
    these two.

    Raises:
        ValueError: It is none of these; the message says what is wrong.
    """
    if text == "off":
        return {}
    quotas = dict(DEFAULT_QUOTAS)
    for item in (part.strip() for part in text.split(",")):
        if item == "on":
            continue
        name, _, value = item.partition("=")
        limit = _LIMITS.get(name.strip())
        if limit is None:
            raise ValueError(f"must be on, off, or name=amount/unit with a name of {', '.join(_LIMITS)}")
        if value.strip() == "off":
            quotas.pop(limit, None)
            continue
        given = _QUOTA.fullmatch(value.strip())
        if given is None:
            raise ValueError(f"{limit} must be off or like 500/minute (second, minute or hour)")
        quotas[limit] = Quota(int(given[1]), _UNITS[given[2]])
    return quotas
