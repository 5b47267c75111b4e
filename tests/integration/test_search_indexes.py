"""Trigram indexes come with ``migrate`` wherever PostgreSQL lets them, and never stand in its way."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from deploy.postgres_server import PostgresServer
from deploy.schema import prepare
from models.database import Database
from models.errors import ConfigurationError
from models.migrate import migrate, write_revision
from models.registry import discover
from models.revisions import known_revisions
from models.schema_fitness import why_unfit
from models.settings import Settings
from tests.kit import tickets
from tests.kit.debian_postgres import DebianPostgresServer, debian_postgres_server
from tests.kit.servers import fresh_database

RESOURCES = [one.type for one in discover()]
BUILT_IN = {"trgm_entities_name", "trgm_entities_description", "trgm_users_email"}

_FORBID = (
    "CREATE FUNCTION forbid() RETURNS event_trigger LANGUAGE plpgsql AS "
    "$$ BEGIN RAISE EXCEPTION 'not on the list' USING ERRCODE = 'insufficient_privilege'; END $$",
    "CREATE EVENT TRIGGER forbid ON ddl_command_start WHEN TAG IN ('CREATE EXTENSION') "
    "EXECUTE FUNCTION forbid()",
)
"""As a provider does who allows no extensions but those of a list."""


@pytest.fixture(scope="module")
def server() -> Iterator[DebianPostgresServer]:
    with debian_postgres_server() as made:
        yield made


@pytest.fixture
def url(server: DebianPostgresServer) -> Iterator[str]:
    with fresh_database(server) as made:
        yield made


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    made = Database(Settings(_env_file=None, database_url=url).database_url)
    yield made
    made.close()


def search_indexes(database: Database) -> set[str]:
    query = text("SELECT indexname FROM pg_indexes WHERE schemaname = 'waybill' AND indexname ~ '^trgm'")
    with database.snapshot() as connection:
        return set(connection.execute(query).scalars())


def test_role_that_only_owns_its_database_gets_extension_and_indexes(database: Database) -> None:
    with database.snapshot() as connection:
        is_super = "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"
        assert connection.execute(text(is_super)).scalar_one() is False
    migrate(database.engine, resources=RESOURCES)
    assert search_indexes(database) == BUILT_IN
    migrate(database.engine, resources=RESOURCES)
    assert search_indexes(database) == BUILT_IN


def test_search_index_is_no_difference_to_the_tables(database: Database, tmp_path: Path) -> None:
    migrate(database.engine, resources=RESOURCES)
    with pytest.raises(ConfigurationError, match="nothing to write"):
        write_revision(database.engine, "what is new", tmp_path)
    with database.snapshot() as connection:
        assert why_unfit(connection, known_revisions()) is None


def test_index_of_somebody_elses_is_still_a_difference(database: Database, tmp_path: Path) -> None:
    migrate(database.engine, resources=RESOURCES)
    with database.transaction() as connection:
        connection.execute(text("CREATE INDEX idx_by_hand ON entities (updated_at)"))
    assert "idx_by_hand" in write_revision(database.engine, "what is new", tmp_path).read_text()


def test_resource_of_ones_own_gets_its_search_indexes(database: Database) -> None:
    own = [*RESOURCES, tickets.RESOURCE]
    migrate(database.engine, resources=own)  # its table is still to come
    assert search_indexes(database) == BUILT_IN
    with database.transaction() as connection:
        tickets.TABLE.create(connection)
    migrate(database.engine, resources=own)
    assert search_indexes(database) == BUILT_IN | {"trgm_order-tickets_number", "trgm_order-tickets_note"}


def test_forbidden_extension_leaves_a_current_schema_and_says_so(
    server: DebianPostgresServer, database: Database, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = url.rpartition("/")[2]
    server.run_as_superuser(name, *_FORBID)
    with caplog.at_level(logging.WARNING, "waybill.migrate"):
        migrate(database.engine, resources=RESOURCES)
    (told,) = caplog.records
    assert "pg_trgm" in told.message
    assert "not on the list" in told.reason  # type: ignore[attr-defined]
    assert search_indexes(database) == set()
    with database.snapshot() as connection:
        assert why_unfit(connection, known_revisions()) is None


def test_extension_that_comes_later_in_a_schema_of_its_own_is_used_by_the_next_migrate(
    server: DebianPostgresServer, database: Database, url: str
) -> None:
    name = url.rpartition("/")[2]
    server.run_as_superuser(name, *_FORBID)
    migrate(database.engine, resources=RESOURCES)
    server.run_as_superuser(
        name,
        "DROP EVENT TRIGGER forbid",
        "CREATE SCHEMA extensions",
        "GRANT USAGE ON SCHEMA extensions TO waybill",
        "CREATE EXTENSION pg_trgm SCHEMA extensions",
    )
    migrate(database.engine, resources=RESOURCES)
    assert search_indexes(database) == BUILT_IN


def test_setting_keeps_search_indexes_away(database: Database, url: str) -> None:
    settings = Settings(_env_file=None, database_url=url, admin_password="a password of ada's")
    prepare(settings.model_copy(update={"search_indexes": False}))
    assert search_indexes(database) == set()
    prepare(settings)
    assert search_indexes(database) == BUILT_IN


def test_server_without_the_extension_gets_none(postgres: PostgresServer) -> None:
    with fresh_database(postgres) as url:
        made = Database(Settings(_env_file=None, database_url=url).database_url)
        migrate(made.engine, resources=RESOURCES)
        assert search_indexes(made) == set()
        with made.snapshot() as connection:
            assert why_unfit(connection, known_revisions()) is None
        made.close()
