"""A process and a schema of two versions: who works with what, who says no, and what mends it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import psycopg
import pytest
from alembic import command
from sqlalchemy import text

from deploy.doctor import _schema
from deploy.postgres_server import PostgresServer
from models import migrate as migrations
from models.container import Container
from models.database import Database
from models.migrate import StillInUse, migrate
from models.revisions import known_revisions
from models.schema_fitness import missing_tables, pending, why_unfit
from models.settings import Settings
from tests.kit.migrations import HEAD, write_migration
from tests.kit.servers import migrated_database

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def url(postgres: PostgresServer) -> Iterator[str]:
    with migrated_database(postgres) as made:
        yield made


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    made = Database(Settings(_env_file=None, database_url=url).database_url)
    yield made
    with made.transaction() as connection:
        connection.execute(text("DELETE FROM applied_migrations WHERE revision !~ '^00'"))
        connection.execute(text(f"UPDATE alembic_version SET version_num = '{HEAD}'"))  # noqa: S608
        connection.execute(text("ALTER TABLE jobs DROP COLUMN IF EXISTS novelty"))
    made.close()


@pytest.fixture
def next_version(tmp_path: Path) -> Path:
    """Its migrations: one that expands, then one that contracts."""
    folder = tmp_path / "next"
    write_migration(folder, "nexpand", 'op.execute("ALTER TABLE jobs ADD COLUMN novelty text")')
    write_migration(folder, "ncontract", "pass", after="nexpand", kind="contract")
    return folder


def unfit(database: Database, *folders: Path) -> str | None:
    with database.snapshot() as connection:
        return why_unfit(connection, known_revisions(folders))


def waybill(url: str, tmp_path: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WAYBILL_")}
    environment = {
        "PYTHONPATH": str(ROOT),
        "WAYBILL_DATABASE_URL": url,
        "WAYBILL_BROKER_URL": "amqp://nobody:nothing@127.0.0.1:1/",
        "WAYBILL_DATA_DIR": str(tmp_path),
    }
    return subprocess.run(
        [sys.executable, "-P", "-m", "deploy.cli", *arguments],
        env=inherited | environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_expand_that_is_not_known_leaves_this_version_fit(database: Database, next_version: Path) -> None:
    migrate(database.engine, [next_version])

    assert unfit(database) is None
    assert unfit(database, next_version) is None  # its contract is still to come
    with database.snapshot() as connection:
        assert pending(connection, known_revisions()) == []
        assert [one.id for one in pending(connection, known_revisions([next_version]))] == ["ncontract"]


def test_older_schema_is_not_fit_and_the_command_is_named(database: Database, next_version: Path) -> None:
    assert unfit(database, next_version) == (
        "the schema is not current, it lacks nexpand (of a test): run waybill migrate"
    )


def test_what_lies_behind_a_contract_is_to_be_had_by_contracting(
    database: Database, next_version: Path
) -> None:
    write_migration(next_version, "nafter", "pass", after="ncontract")
    migrate(database.engine, [next_version])

    reason = unfit(database, next_version) or ""

    assert reason.startswith(
        "the schema is not current, it lacks nafter (of a test): run waybill migrate --con"
    )


def test_contract_that_is_not_known_makes_this_version_unfit(database: Database, next_version: Path) -> None:
    migrate(database.engine, [next_version], contract=True)

    reason = unfit(database) or ""

    assert reason.startswith("the schema has been contracted beyond this version (")
    assert "by revision ncontract of version " in reason
    assert unfit(database, next_version) is None


def test_contract_of_what_this_version_has_left_behind_leaves_it_fit(
    database: Database, tmp_path: Path
) -> None:
    write_migration(tmp_path, "ncontract", "pass", kind="contract", since=HEAD)

    migrate(database.engine, [tmp_path], contract=True)

    assert unfit(database) is None


def test_revision_of_which_nothing_is_recorded_is_not_trusted(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'from_the_future'"))

    assert "from_the_future, which this version does not know" in (unfit(database) or "")


def test_schema_that_was_taken_back_is_older(url: str, database: Database) -> None:
    with database.transaction() as connection:
        command.downgrade(migrations._config(connection, ()), "0008")
    try:
        assert "it lacks 0009" in (unfit(database) or "")
    finally:
        migrate(database.engine)
    assert unfit(database) is None


def test_tables_that_wait_behind_a_contract_are_left_to_their_migration(database: Database) -> None:
    with database.transaction() as connection:
        command.downgrade(migrations._config(connection, ()), "0007")
    assert migrate(database.engine, create_tables=True) == []
    with database.snapshot() as connection:
        assert "applied_migrations" in missing_tables(connection)
        assert pending(connection, known_revisions())[0].id == "0008"

    migrate(database.engine, contract=True)

    assert unfit(database) is None


def test_contract_is_refused_while_a_process_runs_that_does_not_know_it(
    url: str, database: Database, next_version: Path, tmp_path: Path
) -> None:
    settings = Settings(_env_file=None, database_url=url, data_dir=tmp_path)
    present = Container(settings, role="worker", pool_size=1)
    following = Container(
        settings.model_copy(update={"migrations": (next_version,)}), role="api", pool_size=1
    )
    with following.database.snapshot() as connection:
        connection.execute(text("SELECT 1"))
    with present.database.snapshot() as connection:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        with pytest.raises(StillInUse) as caught:
            migrate(database.engine, [next_version], contract=True)
    assert "migration ncontract (of a test) contracts the schema" in str(caught.value)
    assert f"waybill worker {version('waybill')} (connection {pid})" in str(caught.value)
    assert "waybill api" not in str(caught.value)
    assert unfit(database, next_version) is None  # what expands is done

    present.close()
    migrate(database.engine, [next_version], contract=True)
    following.close()
    assert "contracted beyond" in (unfit(database) or "")


def test_process_that_does_not_say_its_version_is_an_old_one(
    url: str, database: Database, next_version: Path
) -> None:
    with psycopg.connect(url, application_name="waybill-sweeper"), pytest.raises(StillInUse) as caught:
        migrate(database.engine, [next_version], contract=True)
    assert "waybill sweeper of an unnamed version" in str(caught.value)


def test_process_of_a_version_that_is_not_known_yet_is_no_older_one(
    url: str, database: Database, next_version: Path
) -> None:
    with psycopg.connect(url, application_name="waybill-worker/9.9.9+n9999"):
        migrate(database.engine, [next_version], contract=True)
    assert unfit(database, next_version) is None


@pytest.mark.parametrize("process", ["worker", "consumer"])
def test_process_does_not_begin_on_a_schema_that_it_cannot_work_with(
    url: str, database: Database, next_version: Path, tmp_path: Path, process: str
) -> None:
    migrate(database.engine, [next_version], contract=True)

    ended = waybill(url, tmp_path, process)

    assert ended.returncode == 2, ended.stderr
    assert "waybill: the schema has been contracted beyond this version" in ended.stderr


def test_check_and_doctor_tell_of_what_is_to_run_and_of_invalid_indexes(
    url: str, database: Database, next_version: Path, tmp_path: Path
) -> None:
    migrate(database.engine, [next_version])
    with database.transaction() as connection:
        connection.execute(text("INSERT INTO tombstones VALUES ('x', gen_random_uuid(), 1)"))
    with psycopg.connect(url, autocommit=True) as builder, database.transaction() as holder:
        holder.execute(text("UPDATE tombstones SET version = 2"))
        builder.execute("SET lock_timeout = '200ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            builder.execute("CREATE INDEX CONCURRENTLY idx_half_built ON tombstones (deleted_at)")
    settings = Settings(_env_file=None, database_url=url, data_dir=tmp_path, migrations=(next_version,))
    findings = [(one.part, one.is_well, one.detail, one.remedy) for one in _schema(settings)]
    checked = waybill(url, tmp_path, "migrate", "--check")
    mended = waybill(url, tmp_path, "migrate")

    assert findings == [
        ("schema", True, "current, 1 to contract once no older version runs", ""),
        ("index", False, "idx_half_built is INVALID: its building was cut short", "run waybill migrate"),
        ("breakers", True, "all closed", ""),
    ]
    assert checked.returncode == 1
    assert "index idx_half_built is INVALID" in checked.stderr
    assert (mended.returncode, mended.stderr) == (0, "")
    assert mended.stdout == "the schema is current\n"
