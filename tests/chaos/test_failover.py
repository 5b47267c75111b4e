"""Which rounds of a clustered run lose a node or a database. Whether that matters: ``waybill chaos``."""

from tests.chaos import failover, faults
from tests.chaos.broker import nodes_of


def test_every_fourth_round_is_of_the_cluster_and_the_seed_decides_which() -> None:
    rounds = faults.schedule(5, 40, at_once=1.5)

    planned = failover.among(rounds, 5)

    assert planned == failover.among(rounds, 5)
    assert planned != failover.among(rounds, 6)
    assert {(one.kind, one.target) for one, *_ in planned[::4]} == set(failover.CATALOGUE)
    assert [one for place, one in enumerate(planned) if place % 4] == [
        list(one) for place, one in enumerate(rounds) if place % 4
    ]


def test_no_server_is_broken_in_two_ways_at_once() -> None:
    for planned in failover.among(faults.schedule(5, 400, at_once=2), 5):
        assert len({one.target for one in planned}) == len(planned)


def test_any_node_of_a_cluster_may_be_asked() -> None:
    nodes = nodes_of("amqp://a:b@localhost:21001/waybill;amqp://a:b@localhost:21002/waybill")

    assert [(one.port, one.virtual_host) for one in nodes] == [(21001, "waybill"), (21002, "waybill")]
