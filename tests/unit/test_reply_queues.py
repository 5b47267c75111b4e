"""Which queues are answered to, by the setting's pattern and whose message it is."""

import pytest

from consumers.reply_queues import ANY_QUEUE, ReplyQueues

OWN = ReplyQueues(r"reply\.{user}(\..+)?|amq\.gen-.+")


@pytest.mark.parametrize("queue", ["reply.crm", "reply.crm.orders", "amq.gen-Xa2"])
def test_users_own_are_answered_to(queue: str) -> None:
    assert OWN.admit(queue, "crm")


@pytest.mark.parametrize("queue", ["reply.payroll", "reply.crmx", "reply.", "reply.crm\n", "my.reply.crm"])
def test_others_are_not(queue: str) -> None:
    assert not OWN.admit(queue, "crm")


def test_user_is_no_expression() -> None:
    assert OWN.admit("reply.c.m", "c.m")
    assert not OWN.admit("reply.crm", "c.m")


def test_who_does_not_say_whose_message_it_is_has_no_own() -> None:
    assert not OWN.admit("reply.crm", None)
    assert not OWN.admit("reply.None", None)
    assert OWN.admit("amq.gen-Xa2", None)


@pytest.mark.parametrize("queue", ["waybill.jobs.high", "Waybill.dead", "celeryev.1", "a@b.celery.pidbox"])
def test_platforms_are_never_answered_to(queue: str) -> None:
    assert not ANY_QUEUE.admit(queue, "crm")
