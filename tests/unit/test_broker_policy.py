"""The broker's policy as it ships: who reaches what, tried on names. No broker."""

import re

import pytest

from deploy.broker.policy import Account, load_policy
from models.errors import ConfigurationError
from tasks import names

OURS = (*names.ALL_QUEUES, names.DEAD_MESSAGES, names.INTAKE, names.EXPIRED_INTAKE, names.DEAD_INTAKE)


@pytest.fixture
def accounts() -> dict[str, Account]:
    policy = load_policy(upstreams=["crm", "crm.v2", "wms"])
    return {account.user: account for account in policy.accounts}


def _reach(account: Account, right: str) -> set[str]:
    return {name for name in (*OURS, names.EVENTS, "amq.default") if re.search(account.rights[right], name)}


def test_each_role_reaches_what_its_work_needs_and_no_more(accounts: dict[str, Account]) -> None:
    celery = set(names.ALL_QUEUES)
    reach = {user.removeprefix("waybill-"): account for user, account in accounts.items()}
    assert {
        role: [_reach(reach[role], right) for right in ("configure", "write", "read")] for role in reach
    } == {
        "api": [set(), {"amq.default"}, set()],
        "worker": [celery, {*celery, "amq.default", names.EVENTS, names.DEAD_MESSAGES}, celery],
        "consumer": [
            set(),
            {"amq.default", names.DEAD_INTAKE},
            {names.INTAKE, names.EXPIRED_INTAKE, names.DEAD_MESSAGES},
        ],
        "flower": [set(), set(), set()],
        **{user: [set(), {names.INTAKE}, set()] for user in ("crm", "crm.v2", "wms")},
    }


def test_upstream_systems_have_reply_queues_of_their_own(accounts: dict[str, Account]) -> None:
    for right in ("configure", "read"):
        mine = re.compile(accounts["crm"].rights[right])
        assert all(mine.search(name) for name in ("reply.crm", "reply.crm.orders", "amq.gen-x"))
        others = ("reply.wms", "reply.crmx", "my.reply.crm", "reply.celery.pidbox", "reply.", "reply.crm.")
        assert not any(mine.search(name) for name in others)
    assert not re.search(accounts["crm.v2"].rights["read"], "reply.crmxv2")


def test_user_whose_answers_would_be_celerys_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="celery"):
        load_policy(upstreams=["celery"])


def test_only_flower_has_a_tag(accounts: dict[str, Account]) -> None:
    assert {user: account.tags for user, account in accounts.items() if account.tags} == {
        "waybill-flower": {"monitoring"}
    }


def test_intake_refuses_at_its_limit_and_the_dead_letters_lose_their_oldest() -> None:
    limits = {limit.name: limit for limit in load_policy().limits}
    assert limits["waybill-intake"].definition["overflow"] == "reject-publish"
    assert limits["waybill-dead"].definition["overflow"] == "drop-head"
    for name, queue in (("waybill-intake", names.INTAKE), ("waybill-dead", names.DEAD_INTAKE)):
        assert [one for one in OURS if re.search(limits[name].pattern, one)] == [queue]
