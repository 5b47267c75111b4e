"""Retention on a large ledger, and over generations: served by indexes, and nothing piles up."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import event, text

from models.database import Database
from models.deliveries.outbox import Outbox
from models.job import JobState, Operation
from models.retention import Retention
from tests.kit.ageing import aged, many_finished, published
from tests.kit.delivering import Endpoint
from tests.kit.platform import Platform

KEPT = timedelta(days=30)
LARGE = ("jobs", "job_events", "deliveries", "idempotency_keys")


@pytest.fixture
def large(platform: Platform) -> Platform:
    """Jobs past their time among many more that are not, and some that never will be."""
    platform.rows("DELETE FROM idempotency_keys")
    many_finished(platform, 5_000, timedelta(days=60))
    platform.rows("UPDATE jobs SET state = 'dead' WHERE sequence % 2 = 0")
    many_finished(platform, 100_000, timedelta(days=1))
    vacuum(platform)
    return platform


def vacuum(platform: Platform) -> None:
    """What autovacuum does, done now."""
    with platform.database.snapshot() as connection:
        connection.execute(text(f"VACUUM (ANALYZE) {', '.join(LARGE)}"))


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from _nodes(inner)


def test_no_statement_reads_a_whole_table(large: Platform) -> None:
    database = Database(large.database.url)
    statements: dict[str, Any] = {}

    def note(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        if "set_config" not in statement:
            statements.setdefault(statement, parameters)

    event.listen(database.engine, "before_cursor_execute", note)
    retention = Retention(database, finished=KEPT, audit=KEPT)
    assert sum(batch.rows.get("jobs", 0) for batch in retention.batches()) == 2_500
    database.close()
    large_ones = {one: given for one, given in statements.items() if any(table in one for table in LARGE)}
    assert len(large_ones) == 5
    url = large.database.url.replace("+psycopg", "")
    with psycopg.connect(url, options="-c search_path=waybill") as connection:
        for statement, parameters in large_ones.items():
            plan = connection.execute(f"EXPLAIN (FORMAT JSON) {statement}", parameters).fetchone()[0][0]
            scans = [
                (node["Node Type"], node["Relation Name"])
                for node in _nodes(plan["Plan"])
                if node.get("Relation Name") in LARGE and node["Node Type"] == "Seq Scan"
            ]
            assert scans == [], statement


def test_tables_and_indexes_stop_growing(platform: Platform) -> None:
    platform.rows(f"TRUNCATE {', '.join(LARGE)}")
    sizes = []
    for _ in range(6):
        many_finished(platform, 3_000)
        for _ in Retention(platform.database, finished=KEPT, audit=KEPT).batches():
            pass
        vacuum(platform)
        many_finished(platform, 3_000)
        sizes.append(_size(platform))
    assert max(sizes[3:]) <= max(sizes[:3]) * 1.1


def test_space_is_freed_before_a_fifth_is_dead(platform: Platform) -> None:
    query = "SELECT relname FROM pg_class WHERE 'autovacuum_vacuum_scale_factor=0.05' = ANY(reloptions)"
    assert {row[0] for row in platform.rows(query)} >= set(LARGE)


def _size(platform: Platform) -> int:
    total = " + ".join(f"pg_total_relation_size('{table}')" for table in LARGE)
    size: int = platform.rows(f"SELECT {total}")[0][0]
    return size


def test_whole_life_of_jobs_leaves_no_row_behind(platform: Platform) -> None:
    endpoint = Endpoint(platform, "https://receiver.example/hook", events=["job.succeeded", "job.failed"])
    (made,) = platform.made(platform.create())
    clean(platform)
    before = counts(platform)
    for round_number in range(3):
        done = platform.made(
            platform.submission(
                Operation.PATCH,
                made.resource_id,
                {"name": f"{round_number}"},
                reply_to="answers",
                callback_endpoint_id=endpoint.id,
                idempotency_key=f"k{round_number}",
                fingerprint=b"f",
            ),
            platform.submission(Operation.PATCH, made.resource_id, {"status": "DRAFT"}, if_match=1_000),
        )
        assert [one.state for one in done] == [JobState.SUCCEEDED, JobState.FAILED]
        clean(platform)
        assert counts(platform) == before


def clean(platform: Platform) -> None:
    """See that everything is sent, let a month pass, and prune."""
    with platform.database.transaction() as connection:
        due = [
            row[0] for row in connection.execute(text("SELECT id FROM deliveries WHERE announce_at <= now()"))
        ]
        sent = [one for one in Outbox().claim(connection, due) if one.kind != "events"]
        Outbox().delivered(connection, sent, status=200)
    published(platform, timedelta(days=31))
    for (job_id,) in platform.rows("SELECT id FROM jobs"):
        aged(platform, job_id, timedelta(days=31))
    for _ in Retention(platform.database, finished=KEPT, audit=KEPT).batches():
        pass


def counts(platform: Platform) -> dict[str, int]:
    """Rows of every table there is."""
    tables = platform.rows("SELECT relname FROM pg_stat_user_tables WHERE schemaname = 'waybill'")
    return {name: platform.rows(f'SELECT count(*) FROM "{name}"')[0][0] for (name,) in tables}  # noqa: S608
