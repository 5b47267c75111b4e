"""Fixtures of the end-to-end tests: whole platforms, started once a session as users start them."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.data_directory import DataDirectory
from deploy.postgres_server import PostgresServer
from deploy.rabbitmq_server import RabbitMQServer, find_rabbitmq
from deploy.redis_server import RedisServer, find_redis
from tests.kit import readme
from tests.kit.client import Client
from tests.kit.launched import Launched, launched_whole
from tests.kit.servers import fresh_database, require, temporary_data_directory

ADMIN = "admin@waybill.local"
PASSWORD = "correct horse battery staple"
CHECKOUT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Platform:
    """A running platform, and its admin."""

    up: Launched
    client: Client
    password: str

    @property
    def flower(self) -> str:
        """Where Flower is."""
        return f"http://127.0.0.1:{self.up.flower_port}"


@dataclass(frozen=True)
class OwnResource:
    """The README's invoices: a folder with the module, and a database that its migrations made.

    Attributes:
        steps: ``migrate`` without a migration, ``migrate new``, ``migrate`` with it, ``migrate new`` again.
    """

    environment: dict[str, str]
    steps: tuple["subprocess.CompletedProcess[str]", ...]

    @property
    def database_url(self) -> str:
        """The database."""
        return self.environment["WAYBILL_DATABASE_URL"]


@contextmanager
def data_directory() -> Iterator[DataDirectory]:
    """A data directory in which nothing is left running."""
    with temporary_data_directory() as made:
        yield made
        for server in (RabbitMQServer, RedisServer, PostgresServer):
            server(made).kill()


@pytest.fixture
def directory() -> Iterator[DataDirectory]:
    """A data directory for one test."""
    with data_directory() as made:
        yield made


@pytest.fixture(scope="session")
def embedded() -> Iterator[Platform]:
    """``waybill up`` with nothing set: the password is the generated one."""
    with data_directory() as directory, launched_whole(directory) as up:
        up.wait_ready()
        yield _logged_in(up, generated_password(up))


@pytest.fixture(scope="session")
def own_resource(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnResource]:
    """The README's module as it stands, its table made by the README's production commands."""
    folder = tmp_path_factory.mktemp("own")
    (block,) = readme.blocks(readme.section("Add your own resource"), "python")
    (folder / "invoices.py").write_text(block)
    migrations = folder / "migrations"
    with fresh_database(postgres) as database_url:
        environment = {
            "PYTHONPATH": f"{folder}{os.pathsep}{CHECKOUT}",
            "WAYBILL_RESOURCES": "invoices",
            "WAYBILL_DATABASE_URL": database_url,
            "WAYBILL_DATA_DIR": str(folder / "data"),
        }
        without = waybill(environment, "migrate")
        environment["WAYBILL_MIGRATIONS"] = str(migrations)
        new = ("migrate", "new", "invoices", "--folder", str(migrations))
        steps = (without, *(waybill(environment, *command) for command in (new, ("migrate",), new)))
        yield OwnResource(environment, steps)


@pytest.fixture(scope="session")
def full(own_resource: OwnResource) -> Iterator[Platform]:
    """``waybill up --full`` that also serves the README's invoices."""
    require(find_rabbitmq)
    require(find_redis)
    settings = {
        **own_resource.environment,
        "WAYBILL_ADMIN_PASSWORD": PASSWORD,
        "WAYBILL_CALLBACK_ALLOW_PRIVATE": "1",
        "WAYBILL_AMQP_PRINCIPALS": f'{{"waybill": "{ADMIN}"}}',
    }
    with data_directory() as directory:
        settings["WAYBILL_DATA_DIR"] = str(directory.path)
        with launched_whole(directory, "--full", **settings) as up:
            up.wait_ready()
            yield _logged_in(up, PASSWORD)


def generated_password(up: Launched) -> str:
    """The password that the first start printed."""
    found = re.search(r"^waybill: +password: (\S+) ", up.said(), re.MULTILINE)
    assert found, up.said()
    return found[1]


def waybill(environment: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WAYBILL_")}
    return subprocess.run(
        [sys.executable, "-P", "-m", "deploy.cli", *arguments],
        env={**inherited, **environment},
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _logged_in(up: Launched, password: str) -> Platform:
    client = Client(f"http://127.0.0.1:{up.api_port}")
    client.log_in(ADMIN, password)
    return Platform(up, client, password)
