"""Inspecting the broker: what differs from the policy, too much or too little, and how to mend it.

Reads only. Rights are regular expressions, and whether two of them mean the same cannot be told; so
what differs is tried on the names that count, and told as what somebody may do and should not, or
should and may not.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kombu import Connection

from deploy.broker.management import Management
from deploy.broker.policy import ANY_TOPIC, RIGHTS, Account, BrokerPolicy
from tasks import names

APPLY = "waybill doctor --broker-permissions apply"

_QUEUES = (*names.ALL_QUEUES, names.DEAD_MESSAGES, names.INTAKE, names.EXPIRED_INTAKE, names.DEAD_INTAKE)
_CELERYS = ("celeryev", "celery.pidbox", "reply.celery.pidbox", "worker@host.celery.pidbox")
_OURS = (*_QUEUES, names.EVENTS, *_CELERYS)
_DEFAULT_EXCHANGE = "amq.default"
_OTHERS = ("amq.gen-somebody", "reply.somebody", "somebody.else")
_OPEN_TO_ALL = {("read", names.EVENTS)}
"""What users that are no role of ours may have: events are there to be listened to."""
_SHOWN = 4


@dataclass(frozen=True, slots=True)
class Deviation:
    """One difference from the policy.

    Attributes:
        subject: The user, queue or limit.
        detail: What it may do and should not, or lacks.
        remedy: How to mend it.
    """

    subject: str
    detail: str
    remedy: str = APPLY


def vhost_of(broker_url: str) -> str:
    """The virtual host that a broker URL names."""
    return Connection(broker_url).virtual_host or "/"


def has_accounts(management: Management, policy: BrokerPolicy) -> bool:
    """Whether any user of the policy exists: else nobody has begun to separate them."""
    known = {one["name"] for one in management.get("users") or ()}
    return any(account.user in known for account in policy.accounts)


def inspect(management: Management, policy: BrokerPolicy, vhost: str) -> list[Deviation]:
    """All differences, users first; empty: it is as it should be.

    Raises:
        BrokerUnavailable: It does not answer.
        ConfigurationError: We may not look.
    """
    users = {one["name"]: _tags(one["tags"]) for one in management.get("users") or ()}
    rights = management.get("permissions") or []
    topics = management.get("topic-permissions") or []
    found: list[Deviation] = []
    for account in policy.accounts:
        if account.user not in users:
            found.append(Deviation(account.user, f"missing (role {account.role})"))
            continue
        found += _of_account(account, users[account.user], rights, topics, vhost)
    found += _of_others(policy, users, rights, vhost)
    found += _of_queues(management, vhost)
    found += _of_limits(management, policy, vhost)
    return found


# ---- users -----------------------------------------------------------------------------


def _of_account(
    account: Account,
    tags: frozenset[str],
    rights: Iterable[Mapping[str, str]],
    topics: Iterable[Mapping[str, str]],
    vhost: str,
) -> Iterator[Deviation]:
    user = account.user
    for tag in sorted(tags - account.tags):
        yield Deviation(user, f"too much: has the tag {tag}")
    for tag in sorted(account.tags - tags):
        yield Deviation(user, f"too little: lacks the tag {tag}")
    own = [one for one in rights if one["user"] == user]
    here = next((one for one in own if one["vhost"] == vhost), dict.fromkeys(RIGHTS, "^$"))
    for right in RIGHTS:
        yield from _of_right(account, right, here[right])
    for one in own:
        if one["vhost"] != vhost and any(one[right] not in ("", "^$") for right in RIGHTS):
            remedy = f"rabbitmqctl clear_permissions -p {one['vhost']} {user}"
            yield Deviation(user, f"too much: has rights in the virtual host {one['vhost']}", remedy)
    key = (user, vhost, names.INTAKE)
    allowed = [one["write"] for one in topics if (one["user"], one["vhost"], one["exchange"]) == key]
    if (allowed or [ANY_TOPIC])[0] != account.topics:
        yield Deviation(user, f"publishes topics {(allowed or [ANY_TOPIC])[0]} instead of {account.topics}")


def _of_right(account: Account, right: str, actual: str) -> Iterator[Deviation]:
    wanted = account.rights[right]
    if actual == wanted:
        return
    probes = (*_OURS, _DEFAULT_EXCHANGE, *_OTHERS)
    much = [name for name in probes if _matches(actual, name) and not _matches(wanted, name)]
    little = [name for name in probes if _matches(wanted, name) and not _matches(actual, name)]
    if much:
        yield Deviation(account.user, f"too much: may {right} {_listed(much)}")
    if little:
        yield Deviation(account.user, f"too little: may not {right} {_listed(little)}")
    if not much and not little:
        yield Deviation(account.user, f"may {right} {actual!r} instead of {wanted!r}")


def _of_others(
    policy: BrokerPolicy,
    users: Mapping[str, frozenset[str]],
    rights: Iterable[Mapping[str, str]],
    vhost: str,
) -> Iterator[Deviation]:
    """Users of no role that reach what is ours. Administrators can do everything anyway."""
    ours = {account.user for account in policy.accounts}
    for one in rights:
        user = one["user"]
        if one["vhost"] != vhost or user in ours or "administrator" in users.get(user, frozenset()):
            continue
        for right in RIGHTS:
            reach = [*_OURS, *([_DEFAULT_EXCHANGE] if right == "write" else [])]
            much = [
                name for name in reach if _matches(one[right], name) and (right, name) not in _OPEN_TO_ALL
            ]
            if much:
                remedy = (
                    f"rabbitmqctl clear_permissions -p {vhost} {user}, "
                    "or name it in WAYBILL_AMQP_PRINCIPALS if it is an upstream system"
                )
                yield Deviation(user, f"too much: has no role and may {right} {_listed(much)}", remedy)


# ---- queues and limits -----------------------------------------------------------------


def _of_queues(management: Management, vhost: str) -> Iterator[Deviation]:
    """Users that may not configure cannot make what is missing."""
    queues = {one["name"] for one in management.get("queues", vhost) or ()}
    for name in _QUEUES:
        if name not in queues:
            yield Deviation(name, "queue missing")
    bindings = management.get("bindings", vhost) or ()
    bound = {(one["source"], one["destination"]) for one in bindings if one["destination_type"] == "queue"}
    for name in (names.INTAKE, names.EXPIRED_INTAKE, names.DEAD_INTAKE, names.DEAD_MESSAGES):
        if name in queues and (name, name) not in bound:
            yield Deviation(name, "queue not bound to its exchange")


def _of_limits(management: Management, policy: BrokerPolicy, vhost: str) -> Iterator[Deviation]:
    policies = {one["name"]: one for one in management.get("policies", vhost) or ()}
    for limit in policy.limits:
        wanted, actual = limit.document(), policies.get(limit.name)
        if actual is None:
            yield Deviation(limit.name, f"limit missing: {_told(limit.definition)}")
        elif {key: actual.get(key) for key in wanted} != wanted:
            yield Deviation(
                limit.name, f"limit is {_told(actual['definition'])} instead of {_told(limit.definition)}"
            )
        rivals = [
            name
            for name, one in policies.items()
            if name != limit.name
            and one.get("priority", 0) >= limit.priority
            and any(_matches(limit.pattern, queue) and _matches(one["pattern"], queue) for queue in _QUEUES)
        ]
        for rival in rivals:
            remedy = f"rabbitmqctl clear_policy -p {vhost} {rival}, or give it a lower priority"
            yield Deviation(limit.name, f"the policy {rival} stands in its way", remedy)


def _tags(value: Any) -> frozenset[str]:
    """A list from 3.9 on, a text with commas before."""
    listed = value.split(",") if isinstance(value, str) else value
    return frozenset(tag for tag in listed if tag)


def _matches(pattern: str, name: str) -> bool:
    """As RabbitMQ has it: found anywhere, and an empty pattern is none at all."""
    if not pattern:
        return False
    try:
        return re.search(pattern, name) is not None
    except re.error:  # Erlang's expressions are not quite ours
        return True


def _listed(found: list[str]) -> str:
    shown = ", ".join(found[:_SHOWN])
    return f"{shown} and {len(found) - _SHOWN} more" if len(found) > _SHOWN else shown


def _told(definition: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in sorted(definition.items()))
