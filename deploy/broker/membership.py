"""On which nodes each of our queues is kept, whether that will do, and whether it is led. Changes nothing."""

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
    """The queues of one node, or of a cluster.

    Attributes:
        nodes: Of the cluster, those that are down too.
        thin: Queues with fewer members than there could be: name and members.
        lost: Queues that nobody leads: whoever consumes from one, or publishes to it, loses his connection.
    """

    nodes: int
    thin: dict[str, int]
    lost: list[str]


def membership(management: Management, vhost: str) -> Membership:
    """Look.

    Raises:
        BrokerUnavailable: The management API does not answer.
        ConfigurationError: We may not look.
    """
    nodes = len(management.get("nodes") or ())
    ours = [one for one in management.get("queues", vhost) or () if one["name"] in _OURS and "members" in one]
    members = {one["name"]: len(one["members"]) for one in ours}
    return Membership(
        nodes,
        thin={name: count for name, count in members.items() if count < min(WANTED, nodes)},
        lost=[one["name"] for one in ours if not one.get("leader")],
    )
