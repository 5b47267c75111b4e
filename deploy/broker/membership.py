"""On how many nodes of a cluster each of our queues is kept, and whether that will do. Changes nothing."""

from dataclasses import dataclass

from deploy.broker.management import Management
from tasks import names

WANTED = 3
"""Members with which a queue outlives any one node; RabbitMQ makes no more by itself."""

_OURS = frozenset(
    {*names.ALL_QUEUES, names.INTAKE, names.EXPIRED_INTAKE, names.DEAD_INTAKE, names.DEAD_MESSAGES}
)


@dataclass(frozen=True, slots=True)
class Membership:
    """A cluster's queues.

    Attributes:
        nodes: Of the cluster, those that are down too.
        thin: Queues with fewer members than there could be: name and members.
    """

    nodes: int
    thin: dict[str, int]


def membership(management: Management, vhost: str) -> Membership:
    """Look.

    Raises:
        BrokerUnavailable: The management API does not answer.
        ConfigurationError: We may not look.
    """
    nodes = len(management.get("nodes") or ())
    members = {
        one["name"]: len(one["members"])
        for one in management.get("queues", vhost) or ()
        if one["name"] in _OURS and "members" in one
    }
    return Membership(nodes, {name: count for name, count in members.items() if count < min(WANTED, nodes)})
