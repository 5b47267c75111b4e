"""Which rounds of a clustered run lose a node or a database. Whether that matters: ``waybill chaos``."""

from tests.chaos import failover, faults


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
