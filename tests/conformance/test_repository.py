"""What every Repository promises, run on the real one and on the fake."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, create_engine

from models.ids import new_id
from models.page_query import PageQuery
from models.repository import Head, Repository, TableRepository
from models.resource_type import ResourceType
from models.resources import entities, related
from tests.kit import tickets
from tests.kit.memory_repository import MemoryRepository
from tests.kit.platform import Platform, running_platform

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
OWNER, OTHER = new_id(), new_id()


@pytest.fixture(scope="module")
def platform(database_url: str) -> Iterator[Platform]:
    with running_platform(database_url) as made:
        yield made


@pytest.fixture(params=[TableRepository, MemoryRepository])
def implementation(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def connection(implementation: Any, request: pytest.FixtureRequest) -> Iterator[Connection]:
    """A transaction that is rolled back; the fake gets one of a database that it never asks."""
    if implementation is MemoryRepository:
        yield create_engine("sqlite://").connect()
        return
    with request.getfixturevalue("platform").database.engine.connect() as made:
        yield made
        made.rollback()


def made_for(resource: ResourceType, implementation: Any) -> Repository:
    repository: Repository = implementation(resource)
    return repository


@pytest.fixture
def repository(implementation: Any) -> Repository:
    return made_for(entities.RESOURCE, implementation)


@pytest.fixture
def ticket_repository(implementation: Any) -> Repository:
    return made_for(tickets.RESOURCE, implementation)


def entity(**more: Any) -> dict[str, Any]:
    return {
        "id": new_id(),
        "name": "thing",
        "description": None,
        "status": "DRAFT",
        "metadata": None,
        "version": 1,
        "owner_id": OWNER,
        "created_at": NOW,
        "updated_at": NOW,
    } | more


def part(of: dict[str, Any], **more: Any) -> dict[str, Any]:
    row = {"id": new_id(), "entity_id": of["id"], "type": "note", "value": 1, "sort_order": 0}
    kept = {"version": 1, "owner_id": OWNER, "created_at": NOW, "updated_at": NOW}
    return row | kept | more


def ticket(number: str, **more: Any) -> dict[str, Any]:
    return {
        "id": new_id(),
        "number": number,
        "note": None,
        "price": None,
        "due_on": None,
        "labels": None,
        "assignee": None,
        "version": 1,
        "owner_id": OWNER,
        "created_at": NOW,
        "updated_at": NOW,
    } | more


def test_what_was_inserted_is_loaded_value_for_value(repository: Repository, connection: Connection) -> None:
    rows = [
        entity(name="Zoë \"quoted\" \\ 'single' :bind %s {brace}", description="a\nb\t\u2713\U0001f600"),
        entity(metadata={"n": None, "f": 1.5, "i": 2**53, "deep": [{"a": []}], "": "empty"}),
        entity(metadata={}),
    ]
    assert repository.insert_many(connection, rows) == {row["id"] for row in rows}
    assert repository.load_many(connection, [row["id"] for row in rows]) == {row["id"]: row for row in rows}


def test_every_column_type_of_a_users_resource_survives(
    ticket_repository: Repository, connection: Connection
) -> None:
    rows = [
        ticket("1", price=Decimal("12345678.90"), due_on=date(2024, 2, 29), labels={"a": [1, None]}),
        ticket("2", labels=None),
        ticket("3", labels="text"),
    ]
    ticket_repository.insert_many(connection, rows)
    assert ticket_repository.load_many(connection, [row["id"] for row in rows]) == {
        row["id"]: row for row in rows
    }


def test_loaded_rows_can_be_written_back(repository: Repository, connection: Connection) -> None:
    row = entity(metadata={"a": 1})
    repository.insert_many(connection, [row])
    loaded = dict(repository.load_many(connection, [row["id"]])[row["id"]])
    assert repository.update_many(connection, [(loaded | {"version": 2}, 1)]) == {row["id"]}
    assert repository.load_many(connection, [row["id"]])[row["id"]] == row | {"version": 2}


def test_nothing_is_a_set_too(repository: Repository, connection: Connection) -> None:
    assert repository.load_many(connection, []) == {}
    assert repository.insert_many(connection, []) == set()
    assert repository.update_many(connection, []) == set()
    assert repository.delete_many(connection, {}) == set()
    assert repository.buried_versions(connection, []) == {}


def test_unknown_ids_are_left_out(repository: Repository, connection: Connection) -> None:
    row = entity(version=7)
    repository.insert_many(connection, [row])
    assert set(repository.load_many(connection, [row["id"], new_id(), row["id"]])) == {row["id"]}
    assert repository.heads(connection, [new_id(), row["id"]]) == {row["id"]: Head(OWNER, 7)}


def test_instance_that_is_there_already_stays_as_it_is(
    repository: Repository, connection: Connection
) -> None:
    row = entity()
    repository.insert_many(connection, [row])
    assert repository.insert_many(connection, [row | {"name": "usurper"}, fresh := entity()]) == {fresh["id"]}
    assert repository.load_many(connection, [row["id"]])[row["id"]]["name"] == "thing"


def test_first_of_a_unique_value_goes_in_and_the_others_stay_out(
    ticket_repository: Repository, connection: Connection
) -> None:
    before, first, second, alone = ticket("1"), ticket("2"), ticket("2"), ticket("3")
    ticket_repository.insert_many(connection, [before])
    inserted = ticket_repository.insert_many(connection, [ticket("1"), first, second, alone])
    assert inserted == {first["id"], alone["id"]}


def test_update_writes_only_over_the_expected_version(repository: Repository, connection: Connection) -> None:
    fresh, stale = entity(), entity(version=5)
    repository.insert_many(connection, [fresh, stale])
    matched = repository.update_many(
        connection,
        [
            (fresh | {"name": "new", "version": 2}, 1),
            (stale | {"name": "new", "version": 5}, 4),
            (entity(), 1),
        ],
    )
    assert matched == {fresh["id"]}
    found = repository.load_many(connection, [fresh["id"], stale["id"]])
    assert (found[fresh["id"]]["name"], found[stale["id"]]["name"]) == ("new", "thing")


def test_update_never_moves_an_instance_to_another_owner_or_birthday(
    repository: Repository, connection: Connection
) -> None:
    row = entity()
    repository.insert_many(connection, [row])
    moved = row | {"owner_id": OTHER, "created_at": NOW + timedelta(days=1), "version": 2}
    repository.update_many(connection, [(moved, 1)])
    assert repository.load_many(connection, [row["id"]])[row["id"]] == row | {"version": 2}


def test_delete_takes_only_the_expected_version_and_remembers_it(
    repository: Repository, connection: Connection
) -> None:
    gone, kept = entity(version=3), entity(version=3)
    repository.insert_many(connection, [gone, kept])
    ids = [gone["id"], kept["id"]]
    assert repository.delete_many(connection, {gone["id"]: 3, kept["id"]: 2, new_id(): 1}) == {gone["id"]}
    assert set(repository.load_many(connection, ids)) == {kept["id"]}
    assert repository.buried_versions(connection, ids) == {gone["id"]: 4}


def test_second_burial_remembers_the_later_version(repository: Repository, connection: Connection) -> None:
    row = entity(version=3)
    for version in (3, 9):
        repository.insert_many(connection, [row | {"version": version}])
        repository.delete_many(connection, {row["id"]: version})
    assert repository.buried_versions(connection, [row["id"]]) == {row["id"]: 10}


# ---- pages ---------------------------------------------------------------------------


@pytest.fixture
def shelf(repository: Repository, connection: Connection) -> list[dict[str, Any]]:
    """Eleven entities; some share a name and a birthday."""
    rows = [
        entity(
            name=f"name {n // 2:02}",
            created_at=NOW + timedelta(seconds=n // 3),
            owner_id=OTHER if n % 4 == 3 else OWNER,
            status="ACTIVE" if n % 2 else "DRAFT",
            description="50% off_\\ Ünïcode" if n == 4 else None,
        )
        for n in range(11)
    ]
    repository.insert_many(connection, rows)
    return rows


def in_order(rows: list[dict[str, Any]], sort: str, *, descending: bool) -> list[UUID]:
    ordered = sorted(rows, key=lambda row: (row[sort], row["id"]), reverse=descending)
    return [row["id"] for row in ordered]


@pytest.mark.parametrize("sort", ["name", "created_at"])
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("limit", [1, 2, 4, 100])
def test_pages_follow_each_other_without_gap_or_overlap(
    repository: Repository,
    connection: Connection,
    shelf: list[dict[str, Any]],
    sort: str,
    limit: int,
    *,
    descending: bool,
) -> None:
    seen: list[UUID] = []
    after = None
    while page := repository.page(
        connection, PageQuery(limit=limit, sort=sort, descending=descending, after=after)
    ):
        assert len(page) <= limit
        seen += [row["id"] for row in page]
        after = (page[-1][sort], page[-1]["id"])
    assert seen == in_order(shelf, sort, descending=descending)


def test_page_holds_only_what_was_asked_for(
    repository: Repository, connection: Connection, shelf: list[dict[str, Any]]
) -> None:
    query = PageQuery(limit=100, sort="name", owner_id=OWNER, status="ACTIVE")
    wanted = [row for row in shelf if row["owner_id"] == OWNER and row["status"] == "ACTIVE"]
    assert [row["id"] for row in repository.page(connection, query)] == in_order(
        wanted, "name", descending=False
    )


@pytest.mark.parametrize(
    ("needle", "count"),
    [
        ("NAME 03", 2),
        ("50% off_\\", 1),
        ("%", 1),
        ("_", 1),
        ("\\", 1),
        ("ÜNÏCODE", 1),
        ("absent", 0),
        ("", 11),
    ],
)
def test_search_is_literal_and_blind_to_case(
    repository: Repository, connection: Connection, shelf: list[dict[str, Any]], needle: str, count: int
) -> None:
    assert len(repository.page(connection, PageQuery(limit=100, search=needle))) == count
    assert len(shelf) == 11


def test_search_where_nothing_is_searchable_finds_nothing(
    implementation: Any, connection: Connection
) -> None:
    declared = ResourceType(
        name="tickets",
        table=tickets.TABLE,
        create=tickets.TicketCreate,
        update=tickets.TicketUpdate,
        read=tickets.TicketRead,
        searchable=(),
    )
    repository = made_for(declared, implementation)
    repository.insert_many(connection, [ticket("1")])
    assert repository.page(connection, PageQuery(search="1")) == []


# ---- parts of a parent -----------------------------------------------------------------


def test_parts_are_listed_headed_and_deleted_by_their_parent(
    implementation: Any, repository: Repository, connection: Connection
) -> None:
    parts = made_for(related.RESOURCE, implementation)
    mine, other = entity(), entity()
    repository.insert_many(connection, [mine, other])
    rows = [part(mine), part(mine, version=4), part(other)]
    assert parts.insert_many(connection, rows) == {row["id"] for row in rows}

    assert parts.heads(connection, [rows[0]["id"]]) == {rows[0]["id"]: Head(OWNER, 1, mine["id"])}
    listed = parts.page(connection, PageQuery(parent_id=mine["id"]))
    assert {row["id"] for row in listed} == {rows[0]["id"], rows[1]["id"]}

    buried = {rows[0]["id"]: 2, rows[1]["id"]: 5}
    assert parts.delete_parts(connection, [mine["id"]]) == buried
    assert parts.delete_parts(connection, [mine["id"]]) == {}
    ids = [row["id"] for row in rows]
    assert set(parts.load_many(connection, ids)) == {rows[2]["id"]}
    assert parts.buried_versions(connection, ids) == buried


def test_update_does_not_move_a_part(
    implementation: Any, repository: Repository, connection: Connection
) -> None:
    parts = made_for(related.RESOURCE, implementation)
    mine, other = entity(), entity()
    repository.insert_many(connection, [mine, other])
    row = part(mine)
    parts.insert_many(connection, [row])
    parts.update_many(connection, [(row | {"entity_id": other["id"], "type": "tag", "version": 2}, 1)])
    found = parts.load_many(connection, [row["id"]])[row["id"]]
    assert (found["entity_id"], found["type"]) == (mine["id"], "tag")
