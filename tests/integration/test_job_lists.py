"""Lists of jobs on a large ledger: every filter is served by an index, whatever else is in the table."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from models.ids import earliest_id, new_id
from models.job_query import JobQuery
from tests.kit.platform import Platform, running_platform

JOBS = 200_000
MOST_LOOKED_AT = 2_000
"""Rows that a page of 20 may look at: what lies within the minutes that clocks may differ by, at most."""

_FILL = """
INSERT INTO jobs (id, sequence, position, lane, state, operation, resource, resource_id, principal_id, door,
                  priority, created_at, request_id)
SELECT CAST(lpad(to_hex(CAST(extract(epoch FROM at) * 1000 AS bigint)), 12, '0') || '70008000'
            || lpad(to_hex(n), 12, '0') AS uuid),
       n, n, n,
       CASE WHEN n % 50000 = 7 THEN 'dead' WHEN n % 20 = 3 THEN 'failed' ELSE 'succeeded' END,
       'create', CASE WHEN n % 100000 = 11 THEN 'order-tickets' ELSE 'entities' END, gen_random_uuid(),
       CASE WHEN n % 2 = 0 THEN :ada ELSE :bob END, 'http', 'normal', at, 'r'
FROM (SELECT n, now() - n * interval '1 second' AS at FROM generate_series(1, :jobs) AS n) AS s
"""


@pytest.fixture(scope="module")
def large(database_url: str) -> Iterator[Platform]:
    with running_platform(database_url) as platform:
        platform.rows(_FILL, ada=platform.ada.id, bob=platform.bob.id, jobs=JOBS)
        with platform.database.snapshot() as connection:
            connection.execute(text("VACUUM ANALYZE jobs"))
        yield platform


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from _nodes(inner)


def _looked_at(platform: Platform, query: JobQuery) -> int:
    """How many rows of ``jobs`` the list touches, by what EXPLAIN ANALYZE says."""
    statement, parameters = query.statement()
    explain = text(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement.text}")
    with platform.database.snapshot() as connection:
        plan = connection.execute(explain, parameters).scalar_one()[0]["Plan"]
    nodes = [node for node in _nodes(plan) if node.get("Relation Name") == "jobs"]
    assert nodes, plan
    assert not [node for node in nodes if node["Node Type"] == "Seq Scan"], plan
    removed = ("Rows Removed by Filter", "Rows Removed by Index Recheck")
    return sum(
        int((node["Actual Rows"] + sum(node.get(name, 0) for name in removed)) * node["Actual Loops"])
        for node in nodes
    )


_LONG_AGO = datetime.now(UTC) - timedelta(seconds=JOBS * 0.8)
FILTERS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "a common state": {"state": "succeeded"},
    "rare states": {"state": "dead"},
    "failed": {"state": "failed"},
    "a state that no job is in": {"state": "queued"},
    "scheduled": {"state": "scheduled"},
    "a common resource": {"resource": "entities"},
    "a rare resource": {"resource": "order-tickets"},
    "a resource that nobody knows": {"resource": "nothing"},
    "an instance that nobody knows": {"resource_id": new_id()},
    "long ago": {"created_before": _LONG_AGO},
    "a second long ago": {"created_after": _LONG_AGO, "created_before": _LONG_AGO + timedelta(seconds=1)},
    "the future": {"created_after": datetime.now(UTC) + timedelta(days=1)},
    "the deep past": {"created_before": datetime(1, 1, 1, tzinfo=UTC)},
    "the far future": {"created_before": datetime(9999, 12, 31, tzinfo=UTC)},
    "a page far down": {"before": earliest_id(_LONG_AGO)},
    "a rare state far down": {"state": "dead", "before": earliest_id(_LONG_AGO)},
}


@pytest.mark.parametrize("is_admin", [True, False], ids=["all", "own"])
@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS.keys())
def test_page_looks_at_few_jobs(large: Platform, filters: dict[str, Any], *, is_admin: bool) -> None:
    query = JobQuery(principal_id=None if is_admin else large.ada.id, **filters)
    assert _looked_at(large, query) <= MOST_LOOKED_AT


@pytest.mark.parametrize("resource", [None, "entities"])
def test_jobs_of_one_instance_are_found_at_once(large: Platform, resource: str | None) -> None:
    instance, job = large.rows("SELECT resource_id, id FROM jobs WHERE sequence = :n", n=JOBS // 2)[0]
    query = JobQuery(resource=resource, resource_id=instance)
    assert _looked_at(large, query) <= 10
    with large.database.snapshot() as connection:
        assert [found.id for found in large.ledger.page(connection, query)] == [job]


def test_times_are_the_databases_and_exact(large: Platform) -> None:
    (row,) = large.rows("SELECT created_at FROM jobs WHERE sequence = :n", n=JOBS // 2)
    moment, second = row[0], timedelta(seconds=1)
    with large.database.snapshot() as connection:
        between = JobQuery(created_after=moment - 2 * second, created_before=moment + 2 * second)
        assert [job.created_at for job in large.ledger.page(connection, between)] == [
            moment + second,
            moment,
            moment - second,
        ]


def test_page_follows_page_to_the_end(large: Platform) -> None:
    seen, before = [], None
    with large.database.snapshot() as connection:
        while page := large.ledger.page(connection, JobQuery(state="failed", before=before, limit=700)):
            seen += [job.id for job in page]
            before = seen[-1]
    assert seen == sorted(set(seen), reverse=True)
    assert len(seen) == JOBS // 20
