"""Migrations against a real PostgreSQL: complete, repeatable, concurrent, without a superuser."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread

import psycopg
import pytest
from alembic import command
from sqlalchemy import text

from deploy.postgres_server import PostgresServer
from models import migrate as migrations
from models.database import Database
from models.migrate import migrate
from models.revisions import known_revisions
from models.schema_fitness import why_unfit
from models.settings import Settings
from tests.kit.servers import fresh_database
from tests.kit.waiting import wait_until

ROOT = Path(__file__).parents[2]

PARCELS = """
from uuid import UUID
from sqlalchemy import Column, Integer, Numeric, String
from models.resource_type import ResourceType, resource_table
from models.schema import Schema

TABLE = resource_table("parcels", Column("label", String(40), nullable=False, unique=True){more})

class Parcel(Schema):
    label: str

class SeenParcel(Parcel):
    id: UUID

RESOURCE = ResourceType(name="parcels", table=TABLE, create=Parcel, update=Parcel, read=SeenParcel)
"""

DRIVER = """
import sys
from pathlib import Path
from sqlalchemy import inspect
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from models.database import Database
from models.migrate import migrate, write_revision
from models.revisions import known_revisions
from models.schema_fitness import why_unfit
from models.registry import discover
from models.settings import Settings
from models.tables import metadata

commands, url, folder, *modules = sys.argv[1:]
database = Database(Settings(_env_file=None, database_url=url).database_url)
discover(modules)
folders = [Path(folder)] if folder else []
for command in commands.split():
    if command == "migrate":
        print(">", migrate(database.engine, folders, contract=True))
    elif command == "create":
        print(">", migrate(database.engine, folders, create_tables=True))
    elif command == "revision":
        print(">", write_revision(database.engine, "what is new", Path(folder)))
    elif command == "current":
        with database.snapshot() as connection:
            print(">", why_unfit(connection, known_revisions(folders)) is None)
    elif command == "compare":
        with database.transaction() as connection:
            print(">", compare_metadata(MigrationContext.configure(connection), metadata))
"""


_SOMEBODY = "gen_random_uuid(), 'somebody@example.org', 'none', 'user'"
_THEIRS = "SELECT gen_random_uuid(), id, 'https://example.org/', 'none' FROM users"


@pytest.fixture
def url(postgres: PostgresServer) -> Iterator[str]:
    with fresh_database(postgres) as made:
        yield made


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    made = Database(Settings(_env_file=None, database_url=url).database_url)
    yield made
    made.close()


def drive(commands: str, url: str, folder: Path | str = "", module: Path | None = None) -> list[str]:
    """What steps print in a process of their own: what a resource declares is global to its process."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{module.parent if module else ''}"}
    modules = [module.stem] if module else []
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, commands, url, str(folder), *modules],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [line.removeprefix("> ") for line in done.stdout.splitlines() if line.startswith("> ")]


def test_migrated_database_is_what_the_tables_say(url: str) -> None:
    assert drive("current migrate compare current", url) == ["False", "[]", "[]", "True"]


def test_second_run_changes_nothing(database: Database) -> None:
    migrate(database.engine)
    with database.transaction() as connection:
        connection.execute(text("INSERT INTO tombstones VALUES ('x', gen_random_uuid(), 1)"))
    migrate(database.engine)
    with database.snapshot() as connection:
        assert connection.execute(text("SELECT count(*) FROM tombstones")).scalar_one() == 1
        assert why_unfit(connection, known_revisions()) is None


def test_those_that_start_at_once_migrate_once(database: Database) -> None:
    with ThreadPoolExecutor(3) as starters:
        list(starters.map(lambda _: migrate(database.engine), range(3)))
    with database.snapshot() as connection:
        assert why_unfit(connection, known_revisions()) is None


def test_migration_waits_for_the_one_under_way(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    patient = Thread(target=migrate, args=(database.engine,))  # what it raises fails the test below
    with caplog.at_level(logging.INFO, "waybill.migrate"), database.transaction() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": migrations._LOCK})
        patient.start()
        wait_until(lambda: "another process migrates" in caplog.text)
        connection.execute(text("SELECT pg_sleep(2.3)"))  # longer than any other statement waits for a lock
        assert connection.execute(text("SELECT to_regclass('waybill.jobs')")).scalar_one() is None
    patient.join()
    with database.snapshot() as connection:
        assert why_unfit(connection, known_revisions()) is None


def test_list_index_that_was_built_beforehand_is_taken_and_the_old_ones_go(
    url: str, database: Database
) -> None:
    migrate(database.engine)
    with database.transaction() as connection:
        command.downgrade(migrations._config(connection, ()), "0007")
        connection.execute(text("CREATE INDEX idx_entities_list ON entities (owner_id, created_at, id)"))
        oid = text("SELECT CAST('idx_entities_list' AS regclass)::oid")
        built = connection.execute(oid).scalar_one()
    assert drive("migrate compare current", url) == ["[]", "[]", "True"]
    with database.snapshot() as connection:
        assert connection.execute(oid).scalar_one() == built


def test_columns_that_a_run_left_without_their_index_are_taken(url: str, database: Database) -> None:
    migrate(database.engine)
    with database.transaction() as connection:
        command.downgrade(migrations._config(connection, ()), "0010")
        connection.execute(text("INSERT INTO users (id, email, password_hash, role) SELECT " + _SOMEBODY))
        connection.execute(text("INSERT INTO callback_endpoints (id, owner_id, url, secret) " + _THEIRS))
        connection.execute(text("ALTER TABLE callback_endpoints ADD COLUMN missed_since timestamptz"))
        connection.execute(text("ALTER TABLE callback_endpoints ADD COLUMN awaited_xid bigint"))
    assert drive("current migrate current", url) == ["False", "[]", "True"]
    with database.snapshot() as connection:
        index = text("SELECT to_regclass('idx_callback_endpoints_missed_since') IS NOT NULL")
        assert connection.execute(index).scalar_one()


def test_plain_client_finds_the_tables(url: str, database: Database) -> None:
    migrate(database.engine)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM jobs").fetchone() == (0,)


def test_role_that_only_owns_its_database_is_enough(url: str, database: Database) -> None:
    with database.snapshot() as connection:
        facts = text("SELECT rolsuper, rolcreatedb, rolcreaterole FROM pg_roles WHERE rolname = current_user")
        assert tuple(connection.execute(facts).one()) == (False, False, False)
    migrate(database.engine)
    with database.snapshot() as connection:
        assert why_unfit(connection, known_revisions()) is None


def test_database_of_a_newer_release_is_not_current(database: Database) -> None:
    migrate(database.engine)
    with database.transaction() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'from_the_future'"))
        assert why_unfit(connection, known_revisions()) is not None


def test_missing_table_of_a_resource_is_named_or_made(url: str, tmp_path: Path) -> None:
    module = tmp_path / "parcels_resource.py"
    module.write_text(PARCELS.format(more=""))
    told = drive("migrate current create current", url, module=module)
    assert told == ["['parcels']", "False", "[]", "True"]


def test_resources_own_revisions_bring_its_table_and_its_next_column(url: str, tmp_path: Path) -> None:
    module, folder = tmp_path / "parcels_resource.py", tmp_path / "my-shop" / "migrations"
    module.write_text(PARCELS.format(more=""))
    _, first, *told = drive("migrate revision migrate compare current", url, folder, module)
    assert told == ["[]", "[]", "True"]
    assert Path(first).parent == folder
    assert "create_table" in Path(first).read_text()
    assert "entities" not in Path(first).read_text()
    module.write_text(PARCELS.format(more=', Column("weight", Integer)'))
    current, second, *told = drive("current revision current migrate compare current", url, folder, module)
    assert current == "True"
    assert "add_column" in Path(second).read_text()
    assert told == ["False", "[]", "[]", "True"]
