"""By what plans lists of instances run, on a large table of Debian's PostgreSQL. Not what they answer.

The plans are those of the statements that the repository runs, told by ``auto_explain`` as they run,
both with plans made for the values at hand and with those that PostgreSQL keeps for any.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, text

from models import page_query
from models.page_query import FEW, PageQuery
from tests.kit.debian_postgres import DebianPostgresServer, debian_postgres_server
from tests.kit.platform import Platform, running_platform
from tests.kit.servers import fresh_database

ROWS = 60_000
RARE = ROWS // 5000
LIMIT = 21
MODES = ("force_generic_plan", "force_custom_plan")
SORTS = ("created_at", "-created_at", "name", "-name")

_FILL = """
INSERT INTO entities (id, name, description, status, owner_id, created_at)
SELECT gen_random_uuid(), 'crate ' || CAST(n * 7919 % 1000 AS text),
       CASE WHEN n % 5000 = 40 THEN 'Holds the ' || 'NEEDLE' WHEN n % 3 = 0 THEN NULL ELSE 'heavy ' || n END,
       CASE WHEN n % 5000 = 80 THEN 'ARCHIVED' WHEN n % 3 = 0 THEN 'DRAFT' ELSE 'ACTIVE' END,
       CASE WHEN n % 40 = 0 THEN CAST(:ada AS uuid) WHEN n % 2 = 0 THEN CAST(:bob AS uuid)
            ELSE CAST(md5(CAST(n % 1000 AS text)) AS uuid) END,
       TIMESTAMPTZ '2026-01-01' + n / 3 * interval '1 second'
FROM generate_series(1, :rows) AS n
"""
"""Ada has a fortieth of them and all that is rare, Bob nearly half."""

_FILL_PARTS = """
INSERT INTO related_entities (id, entity_id, type, value, owner_id, created_at)
SELECT gen_random_uuid(), e.id, 'note', '1', e.owner_id, now() + n * interval '1 second'
FROM (SELECT id, owner_id FROM entities LIMIT 20) AS e, generate_series(1, 200) AS n
"""


@pytest.fixture(scope="module")
def server() -> Iterator[DebianPostgresServer]:
    with debian_postgres_server() as made:
        yield made


@pytest.fixture(scope="module")
def large(server: DebianPostgresServer) -> Iterator[Platform]:
    with fresh_database(server) as url:
        name = url.rpartition("/")[2]
        server.run_as_superuser(
            name,
            *(
                f"ALTER DATABASE {name} SET {setting}"
                for setting in (
                    "session_preload_libraries = 'auto_explain'",
                    "auto_explain.log_min_duration = 0",
                    "auto_explain.log_format = json",
                    "auto_explain.log_analyze = on",
                    "client_min_messages = log",
                    "effective_cache_size = '4MB'",  # as if the table were larger than memory
                )
            ),
        )
        with running_platform(url) as platform:
            _fill(platform)
            yield platform


def _fill(platform: Platform) -> None:
    platform.rows(_FILL, ada=platform.ada.id, bob=platform.bob.id, rows=ROWS)
    platform.rows(_FILL_PARTS)
    with platform.database.snapshot() as connection:
        connection.execute(text("VACUUM ANALYZE entities, related_entities"))


@pytest.fixture(params=MODES)
def connection(large: Platform, request: pytest.FixtureRequest) -> Iterator[Connection]:
    """A connection whose plans are made for any values, or for those at hand."""
    with large.database.snapshot() as made:
        made.execute(text(f"SET plan_cache_mode = {request.param}"))
        yield made
        made.execute(text("RESET plan_cache_mode"))


def page(platform: Platform, connection: Connection, query: PageQuery) -> list[dict[str, Any]]:
    rows = platform.registry["entities"].repository.page(connection, query)
    return [dict(row) for row in rows]


@contextmanager
def plans_told(connection: Connection) -> Iterator[list[dict[str, Any]]]:
    """The plans of what runs on this connection meanwhile."""
    told: list[dict[str, Any]] = []
    raw: Any = connection.connection.driver_connection

    def note(notice: Any) -> None:
        _, _, plan = notice.message_primary.partition("plan:\n")
        told.append(json.loads(plan)["Plan"])

    raw.add_notice_handler(note)
    try:
        yield told
    finally:
        raw.remove_notice_handler(note)


def plans(platform: Platform, connection: Connection, query: PageQuery) -> list[dict[str, Any]]:
    with plans_told(connection) as told:
        page(platform, connection, query)
    assert told, "auto_explain has told nothing"
    return told


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


def indexes(plan: dict[str, Any]) -> set[str]:
    return {node["Index Name"] for node in nodes(plan) if "Index Name" in node}


def kinds(plan: dict[str, Any]) -> set[str]:
    return {node["Node Type"] for node in nodes(plan)}


def looked_at(plan: dict[str, Any]) -> int:
    """How many rows of the table were read for the page."""
    removed = ("Rows Removed by Filter", "Rows Removed by Index Recheck")
    return sum(
        int((node["Actual Rows"] + sum(node.get(name, 0) for name in removed)) * node["Actual Loops"])
        for node in nodes(plan)
        if node.get("Relation Name") == "entities"
    )


def asked(platform: Platform, sort: str, *, is_admin: bool, **more: Any) -> PageQuery:
    return PageQuery(
        limit=LIMIT,
        sort=sort.removeprefix("-"),
        descending=sort.startswith("-"),
        owner_id=None if is_admin else platform.ada.id,
        **more,
    )


def place(platform: Platform, sort: str, *, is_admin: bool) -> tuple[Any, UUID]:
    """The middle of the list: where a page far down begins."""
    (row,) = platform.rows(
        f"SELECT {sort.removeprefix('-')}, id FROM entities "  # noqa: S608 - one of ours
        "WHERE owner_id = coalesce(CAST(:owner AS uuid), owner_id) ORDER BY 1, 2 OFFSET :skipped LIMIT 1",
        owner=None if is_admin else platform.ada.id,
        skipped=ROWS // 50,
    )
    return row[0], row[1]


LISTS = {
    (True, "created_at"): "idx_entities_list_all",
    (True, "name"): "idx_entities_list_all_by_name",
    (False, "created_at"): "idx_entities_list",
    (False, "name"): "idx_entities_list_by_name",
}


@pytest.mark.parametrize("is_admin", [True, False], ids=["everybody's", "own"])
@pytest.mark.parametrize("is_far_down", [False, True], ids=["first", "by cursor"])
@pytest.mark.parametrize("sort", SORTS)
def test_page_is_one_range_of_the_index_of_its_order(
    large: Platform, connection: Connection, sort: str, *, is_admin: bool, is_far_down: bool
) -> None:
    after = place(large, sort, is_admin=is_admin) if is_far_down else None
    (plan,) = plans(large, connection, asked(large, sort, is_admin=is_admin, after=after))
    assert kinds(plan) == {"Limit", "Index Scan"}
    assert indexes(plan) == {LISTS[is_admin, sort.removeprefix("-")]}
    assert looked_at(plan) == LIMIT
    (scan,) = (node for node in nodes(plan) if "Index Name" in node)
    assert ("ROW(" in scan.get("Index Cond", "")) is is_far_down


@pytest.mark.parametrize("sort", ["created_at", "-created_at"])
def test_rare_status_is_found_by_its_index(large: Platform, connection: Connection, sort: str) -> None:
    (plan,) = plans(large, connection, asked(large, sort, is_admin=True, status="ARCHIVED"))
    assert indexes(plan) == {"idx_entities_list_all_by_status"}
    assert looked_at(plan) == RARE


@pytest.mark.parametrize("is_admin", [True, False], ids=["everybody's", "own"])
@pytest.mark.parametrize("status", ["DRAFT", "ARCHIVED"])
@pytest.mark.parametrize("sort", SORTS)
def test_list_by_status_reads_no_more_than_a_few_pages(
    large: Platform, connection: Connection, sort: str, status: str, *, is_admin: bool
) -> None:
    (plan,) = plans(large, connection, asked(large, sort, is_admin=is_admin, status=status))
    assert "Seq Scan" not in kinds(plan)
    assert looked_at(plan) <= 10 * LIMIT


@pytest.mark.parametrize("is_admin", [True, False], ids=["everybody's", "own"])
@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("search", ["NEEDLE", "the need", "absent", "crate 77"])
def test_rare_text_is_found_by_the_trigram_indexes(
    large: Platform, connection: Connection, search: str, sort: str, *, is_admin: bool
) -> None:
    query = asked(large, sort, is_admin=is_admin, search=search)
    if not is_admin:
        query = replace(query, owner_id=large.bob.id)
    (plan,) = plans(large, connection, query)
    assert {"trgm_entities_name", "trgm_entities_description"} <= indexes(plan)
    assert looked_at(plan) <= FEW


@pytest.mark.parametrize("is_admin", [True, False], ids=["everybody's", "own"])
@pytest.mark.parametrize("sort", SORTS)
def test_common_text_is_read_in_order_after_a_bounded_trial(
    large: Platform, connection: Connection, sort: str, *, is_admin: bool
) -> None:
    trial, plan = plans(large, connection, asked(large, sort, is_admin=is_admin, search="CRATE"))
    assert looked_at(trial) <= 2 * (FEW + 1)
    assert indexes(plan) == {LISTS[is_admin, sort.removeprefix("-")]}
    assert looked_at(plan) == LIMIT


def test_trial_goes_by_the_trigram_indexes_also_where_many_are_expected(
    large: Platform, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_query, "FEW", 1)  # of the many that the planner guesses, as on a huge table
    (plan,) = plans(large, connection, asked(large, "name", is_admin=True, search="absent"))
    assert {"trgm_entities_name", "trgm_entities_description"} <= indexes(plan)


def test_text_without_a_trigram_leaves_those_indexes_alone(large: Platform, connection: Connection) -> None:
    for search, pages in (("zz", 1), ("%", 1), ("cr", 2)):
        told = plans(large, connection, asked(large, "name", is_admin=True, search=search))
        assert len(told) == pages
        assert not [name for plan in told for name in indexes(plan) if name.startswith("trgm_")]


def test_parts_of_a_parent_are_one_range_of_their_index(large: Platform, connection: Connection) -> None:
    (row,) = large.rows("SELECT entity_id FROM related_entities LIMIT 1")
    with plans_told(connection) as told:
        large.registry["related"].repository.page(connection, PageQuery(parent_id=row[0]))
    assert indexes(told[0]) == {"idx_related_entities_list"}
    assert "Sort" not in kinds(told[0])
