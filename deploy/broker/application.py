"""Applying the broker's policy: users, rights and limits, then the queues. Prints nothing, asks nobody."""

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from amqp.exceptions import AMQPError
from kombu import Connection
from kombu.exceptions import OperationalError
from pydantic import SecretStr

from deploy.broker.management import Management
from deploy.broker.policy import ANY_TOPIC, Account, BrokerPolicy
from models.errors import BrokerUnavailable, ConfigurationError
from tasks import names
from tasks.topology import declare


def missing_users(management: Management, policy: BrokerPolicy) -> list[str]:
    """Users that do not exist yet: each needs a password."""
    known = {one["name"] for one in management.get("users") or ()}
    return [account.user for account in policy.accounts if account.user not in known]


def apply(
    management: Management, policy: BrokerPolicy, vhost: str, passwords: Mapping[str, SecretStr]
) -> Iterator[str]:
    """Make the users and limits what the policy says; what was done, line by line.

    Harmless where it is so already. Users that the policy does not name, and rights in other virtual
    hosts, are left alone.

    Args:
        management: As an administrator.
        policy: What should be.
        vhost: Where.
        passwords: By user; who exists keeps its own unless one is given.

    Raises:
        BrokerUnavailable: It does not answer.
        ConfigurationError: We may not, or a user to be made has no password.
    """
    for user in missing_users(management, policy):
        if user not in passwords:
            raise ConfigurationError(
                f'the broker user {user} needs a password: WAYBILL_BROKER_PASSWORDS={{"{user}": "..."}}'
            )
    for account in policy.accounts:
        _apply_user(management, account, passwords.get(account.user))
        management.put("permissions", vhost, account.user, document=dict(account.rights))
        if account.topics != ANY_TOPIC or management.get("topic-permissions", vhost, account.user):
            topics = {"exchange": names.INTAKE, "write": account.topics, "read": ANY_TOPIC}
            management.put("topic-permissions", vhost, account.user, document=topics)
        yield f"{account.user}: {account.role}"
    for limit in policy.limits:
        management.put("policies", vhost, limit.name, document=limit.document())
        yield f"{limit.pattern}: " + ", ".join(f"{key} {value}" for key, value in limit.definition.items())


def _apply_user(management: Management, account: Account, password: SecretStr | None) -> None:
    """Set tags, and the password where one is given."""
    known = management.get("users", account.user)
    document: dict[str, Any] = {"tags": ",".join(sorted(account.tags))}
    if password is not None:
        document["password"] = password.get_secret_value()
    elif known is not None:
        document["password_hash"] = known["password_hash"]
        document["hashing_algorithm"] = known["hashing_algorithm"]
    management.put("users", account.user, document=document)


def declare_queues(broker_url: str, management: Management) -> None:
    """Declare exchanges and queues as the administrator: most users of the policy may not.

    Args:
        broker_url: Names host and virtual host; of several nodes the first that answers.
        management: Names the administrator, who stands in for the URL's own user.

    Raises:
        BrokerUnavailable: The broker does not let this user in.
        ConfigurationError: A queue exists with other arguments, or this user may not make it.
    """
    credentials = f"{quote(management.user, safe='')}:{quote(management.password, safe='')}"
    nodes = [urlsplit(url) for url in broker_url.split(";")]
    urls = [one._replace(netloc=f"{credentials}@{one.netloc.rpartition('@')[2]}").geturl() for one in nodes]
    try:
        with Connection(";".join(urls), connect_timeout=5) as connection:
            connection.ensure_connection(max_retries=len(urls), interval_start=0, interval_step=0)
            declare(connection)
    except (OSError, AMQPError, OperationalError) as error:
        raise BrokerUnavailable(
            f"{management.user} cannot declare the queues: {' '.join(str(error).split())[:200]}; "
            "it needs rights in the virtual host (rabbitmqctl set_permissions)"
        ) from error
