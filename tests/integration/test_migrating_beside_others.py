"""Migrating beside a platform that works: nobody waits behind it, nothing is left half done."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import exc, text

from deploy.postgres_server import PostgresServer
from models import migrate as migrations
from models.database import Database
from models.errors import Contention
from models.index_building import invalid_indexes
from models.lock_patience import Patience
from models.migrate import migrate
from models.settings import Settings
from tests.kit.migrations import write_migration
from tests.kit.servers import migrated_database
from tests.kit.waiting import wait_until

HASTY = Patience(timedelta(seconds=0.5), attempts=2, base=timedelta(seconds=0.1))
STUBBORN = Patience(
    timedelta(seconds=0.5), attempts=100, base=timedelta(seconds=0.1), cap=timedelta(seconds=1)
)


@pytest.fixture(scope="module")
def url(postgres: PostgresServer) -> Iterator[str]:
    with migrated_database(postgres) as made:
        yield made


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    made = Database(
        Settings(_env_file=None, database_url=url).database_url,
        statement_timeout=timedelta(seconds=100),
        lock_timeout=timedelta(seconds=100),
    )
    yield made
    _take_back_to_the_built_in(made)
    made.close()


def _take_back_to_the_built_in(database: Database) -> None:
    """Undo by hand what the tests' migrations did: they have no way back."""
    with database.transaction() as connection:
        for statement in (
            "ALTER TABLE jobs DROP COLUMN IF EXISTS novelty",
            "DROP INDEX IF EXISTS idx_of_a_test",
            "DROP INDEX IF EXISTS idx_users_by_hand",
            "DROP TABLE IF EXISTS novelties",
            "DELETE FROM applied_migrations WHERE revision !~ '^00'",
            "UPDATE alembic_version SET version_num = (SELECT max(revision) FROM applied_migrations)",
        ):
            connection.execute(text(statement))


def one(database: Database, query: str) -> Any:
    with database.snapshot() as connection:
        return connection.execute(text(query)).scalar()


def has_novelty(database: Database) -> bool:
    return bool(one(database, "SELECT count(*) FROM pg_attribute WHERE attrelid = 'jobs'::regclass "
                              "AND attname = 'novelty' AND NOT attisdropped"))  # fmt: skip


def migrated(database: Database, folder: Path, patience: Patience = HASTY) -> threading.Thread:
    """Migrate in the background."""
    thread = threading.Thread(
        target=migrate, args=(database.engine, [folder]), kwargs={"patience": patience}, daemon=True
    )
    thread.start()
    return thread


def test_lock_that_cannot_be_had_is_given_up_naming_who_holds_it(database: Database, tmp_path: Path) -> None:
    write_migration(
        tmp_path,
        "next",
        'op.execute("CREATE TABLE novelties (id int)")\n'
        'op.execute("ALTER TABLE jobs ADD COLUMN novelty text")',
    )
    with database.transaction() as reader:
        pid = reader.execute(text("SELECT pg_backend_pid()")).scalar_one()
        reader.execute(text("SET LOCAL application_name = 'a long report'"))
        reader.execute(text("SELECT count(*) AS counted_by_the_report FROM jobs"))
        with pytest.raises(Contention) as caught:
            migrate(database.engine, [tmp_path], patience=HASTY)

    told = str(caught.value)
    assert "migration next (of a test) could not get a lock in 2 attempts" in told
    assert f"pid {pid} (a long report), in a transaction since 20" in told
    assert "counted_by_the_report" in told
    assert f"pg_terminate_backend({pid})" in told
    assert "run waybill migrate again" in told
    assert one(database, "SELECT to_regclass('novelties')") is None  # its first statement was done
    migrate(database.engine, [tmp_path], patience=HASTY)
    assert has_novelty(database)


def test_migration_that_waits_holds_nobody_up_and_is_done_at_last(
    database: Database, url: str, tmp_path: Path
) -> None:
    """A reader holds ``jobs`` throughout; others of the platform, with its time-out, go on reading it."""
    write_migration(tmp_path, "next", 'op.execute("ALTER TABLE jobs ADD COLUMN novelty text")')
    platform = Database(Settings(_env_file=None, database_url=url).database_url)
    waited, refused = 0, 0
    with database.transaction() as reader:
        reader.execute(text("SELECT count(*) FROM jobs"))
        thread = migrated(database, tmp_path, STUBBORN)
        blocked = text(
            "SELECT count(*) FROM pg_locks WHERE relation = 'jobs'::regclass AND NOT granted "
            "AND mode = 'AccessExclusiveLock'"
        )
        deadline = time.monotonic() + 40
        while waited < 3 and time.monotonic() < deadline:
            waited += bool(reader.execute(blocked).scalar_one())
            try:
                with platform.snapshot() as connection:
                    connection.execute(text("SELECT count(*) FROM jobs"))
            except Contention:
                refused += 1
    thread.join(60)
    platform.close()

    assert waited == 3
    assert refused == 0
    assert has_novelty(database)


def test_index_that_was_left_invalid_is_built_anew_by_its_migration(
    database: Database, tmp_path: Path
) -> None:
    """An interrupted build, as by a killed ``waybill migrate``: the table is not empty."""
    write_migration(tmp_path, "next", 'build_index("idx_of_a_test", "tombstones", ["version"])')
    _leave_invalid(database, "idx_of_a_test", "tombstones (deleted_at)")  # as an earlier draft would have it
    with database.snapshot() as connection:
        assert invalid_indexes(connection) == ["idx_of_a_test"]

    migrate(database.engine, [tmp_path])

    with database.snapshot() as connection:
        assert invalid_indexes(connection) == []
    assert one(database, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'idx_of_a_test'::regclass")
    definition = one(database, "SELECT pg_get_indexdef('idx_of_a_test'::regclass)")
    assert definition.endswith("(version)")
    assert one(database, "SELECT version_num FROM alembic_version") == "next"


def test_any_invalid_index_of_ours_is_built_anew(database: Database) -> None:
    _leave_invalid(database, "idx_users_by_hand", "tombstones (deleted_at)")

    migrate(database.engine)

    assert one(database, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'idx_users_by_hand'::regclass")


def _leave_invalid(database: Database, name: str, on: str) -> None:
    with database.transaction() as connection:
        connection.execute(text("INSERT INTO tombstones VALUES ('x', gen_random_uuid(), 1)"))
    with database.transaction() as holder, database.snapshot() as builder:
        holder.execute(text("UPDATE tombstones SET version = 2"))
        builder.execute(text("SET lock_timeout = '200ms'"))
        with pytest.raises(exc.DBAPIError):
            builder.execute(text(f"CREATE INDEX CONCURRENTLY {name} ON {on}"))
        builder.invalidate()


def test_index_is_built_while_others_write(database: Database, tmp_path: Path) -> None:
    """A plain ``CREATE INDEX`` would wait for the writer, and have every later one wait behind itself."""
    write_migration(tmp_path, "next", 'build_index("idx_of_a_test", "tombstones", ["version"])')
    with database.transaction() as connection:
        connection.execute(text("INSERT INTO tombstones VALUES ('x', gen_random_uuid(), 1)"))
    with database.transaction() as writer:
        writer.execute(text("UPDATE tombstones SET version = 3"))
        thread = migrated(database, tmp_path)
        wait_until(
            lambda: one(database, "SELECT count(*) FROM pg_stat_progress_create_index"),
            timeout_seconds=40,
            what="the index is being built",
        )
        with database.transaction() as another:
            another.execute(text("SET LOCAL lock_timeout = '10s'"))
            another.execute(text("INSERT INTO tombstones VALUES ('y', gen_random_uuid(), 1)"))
    thread.join(60)
    assert one(database, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'idx_of_a_test'::regclass")


def test_built_in_indexes_are_built_beside_writers(database: Database) -> None:
    """0004 and 0009 on tables that are not empty: only concurrent builds can be done while these are held."""
    with database.transaction() as connection:
        connection.execute(text(
            "INSERT INTO idempotency_keys SELECT gen_random_uuid(), 'http', 'k', '', gen_random_uuid()"
        ))  # fmt: skip
        command.downgrade(migrations._config(connection, ()), "0008")
    seen: list[str] = []
    watched = threading.Event()
    watcher = threading.Thread(target=_note_builds, args=(database, seen, watched), daemon=True)
    with database.transaction() as writer:
        writer.execute(text("UPDATE idempotency_keys SET fingerprint = 'x'"))
        watcher.start()
        thread = threading.Thread(target=migrate, args=(database.engine,), daemon=True)
        thread.start()
        wait_until(lambda: seen, timeout_seconds=40, what="the index is being built")
    thread.join(60)
    watched.set()
    watcher.join(10)
    assert set(seen) == {"CREATE INDEX CONCURRENTLY"}
    assert one(
        database, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'idx_idempotency_keys_job_id'::regclass"
    )


def _note_builds(database: Database, seen: list[str], watched: threading.Event) -> None:
    while not watched.wait(0.1):
        with database.snapshot() as connection:
            seen += connection.execute(text("SELECT command FROM pg_stat_progress_create_index")).scalars()


def test_two_at_once_do_it_once_though_the_first_builds_concurrently(
    database: Database, tmp_path: Path
) -> None:
    """The second one must not wait in a transaction: the build would wait for that, and it for the build."""
    write_migration(tmp_path, "next", 'build_index("idx_of_a_test", "tombstones", ["version"])')
    with database.transaction() as connection:
        connection.execute(text("INSERT INTO tombstones VALUES ('x', gen_random_uuid(), 1)"))
    with ThreadPoolExecutor(2) as both:
        under_way = [both.submit(migrate, database.engine, [tmp_path], patience=HASTY) for _ in range(2)]
        assert [one.result(120) for one in under_way] == [[], []]
    assert one(database, "SELECT count(*) FROM applied_migrations WHERE revision = 'next'") == 1
