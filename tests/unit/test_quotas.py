"""Quotas: the setting that changes them, and what it refuses."""

import pytest

from models.quotas import DEFAULT_QUOTAS, Limit, Quota, parse_quotas


def test_on_are_the_contracts() -> None:
    amounts = {limit: parse_quotas("on")[limit].amount for limit in Limit}
    assert amounts == {
        Limit.LIST: 100,
        Limit.READ: 200,
        Limit.WRITE: 50,
        Limit.DELETE: 20,
        Limit.BULK: 20,
        Limit.JOBS: 600,
        Limit.CONTROL: 50,
        Limit.LOGIN: 60,
        Limit.ANONYMOUS: 600,
    }
    assert {quota.seconds for quota in parse_quotas("on").values()} == {60}


def test_off_binds_nobody() -> None:
    assert parse_quotas("off") == {}


def test_named_ones_replace_the_contracts() -> None:
    quotas = parse_quotas("on, write=500/minute , delete=off,list=5/second,bulk=7/hour")
    assert quotas[Limit.WRITE] == Quota(500, 60)
    assert quotas[Limit.LIST] == Quota(5, 1)
    assert quotas[Limit.BULK] == Quota(7, 3600)
    assert Limit.DELETE not in quotas
    assert quotas[Limit.READ] == DEFAULT_QUOTAS[Limit.READ]


@pytest.mark.parametrize(
    "text",
    [
        *("", "maybe", "ON", "write", "write=", "write=0/minute", "write=-1/minute", "write=5", "off,on"),
        *("write=5/day", "write=5/minute/x", "writes=5/minute", "write=5/minute,", "write=1e3/minute"),
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_quotas(text)
