"""Real PostgreSQL, RabbitMQ and Redis for tests, by the classes that ``waybill up`` uses. No doubles."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from deploy.data_directory import DataDirectory
from deploy.postgres_server import PostgresServer
from deploy.rabbitmq_server import RabbitMQServer, find_rabbitmq
from deploy.redis_server import RedisServer, find_redis
from deploy.server import LocalServer
from models.database import Database
from models.errors import ConfigurationError
from models.migrate import migrate
from models.settings import Settings

_Server = TypeVar("_Server", bound=LocalServer)
REQUIRE = "WAYBILL_REQUIRE_SERVERS"


@contextmanager
def temporary_data_directory() -> Iterator[DataDirectory]:
    """A data directory that vanishes, reachable by the user that PostgreSQL runs as under root.

    Not pytest's ``tmp_path``: that is mode 700 all the way, so root's PostgreSQL would keep its data
    in ``/var/lib`` and leave it there.
    """
    path = Path(tempfile.mkdtemp(prefix="waybill-tests-"))
    path.chmod(0o711)
    directory = DataDirectory(path)
    directory.prepare()
    try:
        yield directory
    finally:
        reminder = path / "postgres.location"
        if reminder.is_file():
            shutil.rmtree(reminder.read_text().strip(), ignore_errors=True)
        directory.remove_metrics()
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def running(server: _Server) -> Iterator[_Server]:
    """Start a server for the length of a block, and end it whatever happens."""
    try:
        server.start()
        yield server
    finally:
        server.stop()


@contextmanager
def fresh_database(server: PostgresServer) -> Iterator[str]:
    """An empty database of its own, dropped afterwards; yields its URL."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    try:
        yield server.create_database(name)
    finally:
        server.drop_database(name)


@contextmanager
def migrated_database(server: PostgresServer) -> Iterator[str]:
    """The URL of a database of its own that has the newest schema."""
    with fresh_database(server) as url:
        database = Database(Settings(_env_file=None, database_url=url).database_url)
        migrate(database.engine)
        database.close()
        yield url


def require(find: Callable[[], object]) -> None:
    """Skip when a server's program is missing; fail where all are required (CI).

    Args:
        find: Raises :class:`ConfigurationError` when it is missing.
    """
    try:
        find()
    except ConfigurationError as error:
        if os.environ.get(REQUIRE) == "1" or os.environ.get("CI") == "true":
            pytest.fail(f"a required server is missing: {error}")
        pytest.skip(f"A SERVER IS MISSING: {error}")


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """The wheel's PostgreSQL, on data of its own."""
    with temporary_data_directory() as directory, running(PostgresServer(directory)) as server:
        yield server


@contextmanager
def rabbitmq_server() -> Iterator[RabbitMQServer]:
    """This machine's RabbitMQ, as a node of its own."""
    require(find_rabbitmq)
    with temporary_data_directory() as directory, running(RabbitMQServer(directory)) as server:
        yield server


@contextmanager
def redis_server() -> Iterator[RedisServer]:
    """This machine's Redis, memory only."""
    require(find_redis)
    with temporary_data_directory() as directory, running(RedisServer(directory)) as server:
        yield server
