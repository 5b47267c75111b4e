"""Parts of a parent where jobs are applied: one lane, in order, gone with their parent."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

from models.audit import Actor
from models.dead_letters.judging import Prospect
from models.dead_letters.redriving import RedriveOrder
from models.errors import NotFound, internal_problem
from models.ids import lane_key, new_id
from models.job import JobState, Operation, Submission
from models.ledger import Outcome
from models.service import Change
from tests.kit import stubs
from tests.kit.platform import Platform, running_platform

NOTE = {"type": "note", "value": 1}


@pytest.fixture(scope="module")
def platform(database_url: str) -> Iterator[Platform]:
    with running_platform(database_url, resources=("tests.kit.tickets", "tests.kit.stubs")) as made:
        with made.database.transaction() as connection:
            stubs.TABLE.create(connection)
        yield made


def part(platform: Platform, operation: Operation, entity: UUID, one: UUID, data: Any = None) -> Submission:
    lane = lane_key("entities", entity)
    return platform.submission(operation, one, data, resource="related", parent_id=entity, lane=lane)


def stub(platform: Platform, operation: Operation, ticket: UUID, one: UUID, seat: str = "1") -> Submission:
    lane = lane_key("tickets", ticket)
    return platform.submission(operation, one, {"seat": seat}, resource="stubs", parent_id=ticket, lane=lane)


def outcomes(platform: Platform, ids: list[UUID]) -> list[Any]:
    jobs = [platform.job(one) for one in ids]
    return [str(job.state) if job.error is None else job.error["status"] for job in jobs]


def test_parent_and_parts_are_applied_in_the_order_of_acceptance(platform: Platform) -> None:
    entity, one, two = new_id(), new_id(), new_id()
    ids = platform.accept(
        platform.create(resource_id=entity),
        part(platform, Operation.CREATE, entity, one, NOTE),
        part(platform, Operation.PATCH, entity, one, {"value": 2}),
        part(platform, Operation.CREATE, entity, two, NOTE),
        platform.submission(Operation.DELETE, entity),
        part(platform, Operation.PATCH, entity, one, {"value": 3}),
        part(platform, Operation.CREATE, entity, new_id(), NOTE),
        platform.create(resource_id=entity),
        part(platform, Operation.CREATE, entity, one, NOTE),
    )
    platform.applier().apply(ids[-1:])
    assert outcomes(platform, ids) == [*["succeeded"] * 5, 404, 404, "succeeded", "succeeded"]
    assert platform.instance(two, "related") is None
    again = platform.instance(one, "related")
    assert again is not None
    assert (again["value"], again["version"]) == (1, 4)


def test_part_accepted_before_its_parent_was_deleted_is_refused_at_apply(platform: Platform) -> None:
    entity, one = new_id(), new_id()
    platform.made(platform.create(resource_id=entity))
    ids = platform.accept(platform.submission(Operation.DELETE, entity))
    ids += platform.accept(part(platform, Operation.CREATE, entity, one, NOTE))
    platform.applier().apply(ids)
    assert outcomes(platform, ids) == ["succeeded", 404]


def test_part_of_a_parent_whose_creation_is_refused_fails(platform: Platform) -> None:
    entity, one = new_id(), new_id()
    ids = platform.accept(
        platform.create(resource_id=entity, by=platform.guest),
        part(platform, Operation.CREATE, entity, one, NOTE),
    )
    platform.applier().apply(ids)
    assert outcomes(platform, ids) == [403, 404]


def test_unknown_parent_is_refused_at_the_door(platform: Platform) -> None:
    [answer] = platform.intake.accept([part(platform, Operation.CREATE, new_id(), new_id(), NOTE)])
    assert isinstance(answer, NotFound)


def test_same_id_below_two_parents_is_made_once(platform: Platform) -> None:
    mine, other, one = new_id(), new_id(), new_id()
    platform.made(platform.create(resource_id=mine), platform.create(resource_id=other))
    ids = platform.accept(*(part(platform, Operation.CREATE, entity, one, NOTE) for entity in (mine, other)))
    platform.applier().apply(ids)
    assert sorted(map(str, outcomes(platform, ids))) == ["409", "succeeded"]


def test_a_thousand_parts_go_with_their_parent_and_leave_tombstones(platform: Platform) -> None:
    entity = new_id()
    platform.made(platform.create(resource_id=entity))
    ids = [new_id() for _ in range(1000)]
    made = platform.accept(*(part(platform, Operation.CREATE, entity, one, NOTE) for one in ids))
    platform.applier().apply(made)
    [deleted] = platform.made(platform.submission(Operation.DELETE, entity))
    assert deleted.state == "succeeded"
    query = "SELECT count(*) FROM related_entities WHERE entity_id = :id"
    assert platform.rows(query, id=entity)[0][0] == 0
    query = "SELECT count(*), min(version), max(version) FROM tombstones WHERE resource_id = ANY(:ids)"
    assert tuple(platform.rows(query, ids=ids)[0]) == (1000, 2, 2)


def test_taken_value_is_refused_within_the_set(platform: Platform, caplog: pytest.LogCaptureFixture) -> None:
    """Duplicates must not roll back the batch of everybody else."""
    caplog.set_level("INFO")
    tickets = [platform.ticket(f"set-{number}") for number in range(8)]
    platform.made(*tickets)
    numbers = ["set-0", "fresh-1", "set-2", "fresh-3", "set-0", "fresh-5", "set-6", "set-0"]
    jobs = platform.made(
        *(
            platform.patch_ticket(one.resource_id, number=number)
            for one, number in zip(tickets, numbers, strict=True)
        )
    )
    assert [job.error["status"] if job.error else 0 for job in jobs] == [0, 0, 0, 0, 409, 0, 0, 409]
    assert "batch split" not in caplog.text


def test_parts_of_a_parent_whose_deletion_is_refused_are_still_there(platform: Platform) -> None:
    """The parts went first, and came back with the rows that something else refers to."""
    tickets = [platform.ticket("T-1"), platform.ticket("T-2")]
    (free, kept), parts = (one.resource_id for one in tickets), [new_id(), new_id()]
    platform.made(*tickets)
    platform.made(
        stub(platform, Operation.CREATE, free, parts[0]), stub(platform, Operation.CREATE, kept, parts[1])
    )
    platform.rows('CREATE TABLE refunds (ticket_id uuid REFERENCES "order-tickets")')
    platform.rows("INSERT INTO refunds VALUES (:id)", id=kept)
    ids = platform.accept(
        *(platform.submission(Operation.DELETE, one, resource="tickets") for one in (free, kept)),
        stub(platform, Operation.PATCH, free, parts[0], seat="2"),
        stub(platform, Operation.PATCH, kept, parts[1], seat="2"),
    )
    platform.applier().apply(ids)
    assert outcomes(platform, ids) == ["succeeded", 409, 404, "succeeded"]
    left = [platform.instance(one, "stubs") for one in parts]
    assert [one and one["seat"] for one in left] == [None, "2"]


def test_dead_deletion_of_a_parent_is_redriven_where_its_parts_do_not_cascade(platform: Platform) -> None:
    """The parts go first, as they do where it is applied; and a dry run leaves them where they are."""
    ticket, one = platform.ticket("T-3"), new_id()
    platform.made(ticket)
    platform.made(stub(platform, Operation.CREATE, ticket.resource_id, one))
    [(cascade,)] = platform.rows(
        "SELECT conname FROM pg_constraint WHERE contype = 'f' AND conrelid = CAST('stubs' AS regclass) "
        "AND confdeltype = 'c'"
    )
    platform.rows(f'ALTER TABLE stubs DROP CONSTRAINT "{cascade}"')
    platform.rows('ALTER TABLE stubs ADD FOREIGN KEY (ticket_id) REFERENCES "order-tickets"')
    [job] = platform.accept(platform.submission(Operation.DELETE, ticket.resource_id, resource="tickets"))
    dead = Outcome(job_id=job, state=JobState.DEAD, attempt=8, error=internal_problem("r"))
    with platform.database.transaction() as connection:
        platform.ledger.finish(connection, [dead])
    redriver, ada = platform.container.redriver, Actor(None, "ada")
    foreseen = redriver.redrive_one(job, RedriveOrder(reason="mended", dry_run=True), ada)
    assert isinstance(foreseen, Prospect)
    assert isinstance(foreseen.foreseen, Change)
    assert platform.instance(one, "stubs") is not None
    redriver.redrive_one(job, RedriveOrder(reason="mended"), ada)
    platform.applier().apply([job])
    assert outcomes(platform, [job]) == ["succeeded"]
    assert platform.instance(one, "stubs") is None
