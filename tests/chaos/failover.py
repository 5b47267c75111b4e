"""Faults of a clustered arena: nodes lost, a database lost for good. The others: ``faults.py``."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from tasks.names import ALL_QUEUES, INTAKE
from tests.chaos.clustered_arena import ClusteredArena
from tests.kit.freezing import freeze, thaw
from tests.kit.rabbitmq_cluster import ClusterNode

if TYPE_CHECKING:
    from tests.chaos.arena import Arena
    from tests.chaos.faults import Fault, Lift

_EVERY = 4
"""One round in so many is of these."""

CATALOGUE = (
    ("kill-leader", "rabbitmq"),
    ("kill-follower", "rabbitmq"),
    ("stop-leader", "rabbitmq"),
    ("lose", "postgres"),
)
"""Kind and target."""


def among(rounds: Sequence[Sequence["Fault"]], seed: int) -> list[list["Fault"]]:
    """The same rounds, some of them with these faults instead; the same for the same seed."""
    chance = random.Random(f"failover-{seed}")
    deck: list[tuple[str, str]] = []
    found = [list(planned) for planned in rounds]
    for planned in found[::_EVERY]:
        if not deck:
            deck = list(CATALOGUE)
            chance.shuffle(deck)
        kind, target = deck.pop()
        # A node that was killed is started again at once, and what goes on meanwhile is what is measured.
        seconds = 0.0 if kind.startswith("kill-") else round(chance.uniform(1, 12), 2)
        first = replace(planned[0], kind=kind, target=target, seconds=seconds)
        planned[:] = [first, *(one for one in planned[1:] if one.target != target)]
    return found


def _clustered(arena: "Arena") -> ClusteredArena:
    assert isinstance(arena, ClusteredArena), "its arena has no cluster"
    return arena


def _leader(arena: "Arena", fault: "Fault") -> ClusterNode:
    """The leader of a queue that the fault draws; every node is there before one is lost."""
    cluster = _clustered(arena).rabbitmq
    cluster.start()
    queue = random.Random(fault.draw).choice([*ALL_QUEUES, INTAKE])
    return cluster.leader_of(queue) or cluster.nodes[0]


def _kill_leader(arena: "Arena", fault: "Fault") -> "Lift":
    node = _leader(arena, fault)
    node.kill()
    return node.launch


def _kill_follower(arena: "Arena", fault: "Fault") -> "Lift":
    leader = _leader(arena, fault)
    others = [node for node in _clustered(arena).rabbitmq.nodes if node is not leader]
    node = random.Random(fault.draw).choice(others)
    node.kill()
    return node.launch


def _stop_leader(arena: "Arena", fault: "Fault") -> "Lift":
    pid = _leader(arena, fault).pid
    return partial(thaw, freeze(pid)) if pid is not None else lambda: None


def _lose(arena: "Arena", _fault: "Fault") -> "Lift":
    """The primary, and all that is on its disk."""
    clustered = _clustered(arena)
    clustered.await_standby()
    clustered.postgres.primary.kill()
    return clustered.promote


BEGIN: dict[str, Callable[["Arena", "Fault"], "Lift"]] = {
    "kill-leader": _kill_leader,
    "kill-follower": _kill_follower,
    "stop-leader": _stop_leader,
    "lose": _lose,
}
"""How each is begun."""
