"""The servers that everybody shares: those that ``waybill up --full`` starts, or those that a URL names.

PostgreSQL keeps fsync, full_page_writes and synchronous_commit on; the report prints what it says itself.
"""

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import psycopg
from kombu import Connection
from psycopg import sql
from sqlalchemy import make_url

from deploy.postgres_server import PostgresServer
from deploy.rabbitmq_server import RabbitMQServer
from deploy.redis_server import RedisServer
from tests.kit.servers import running, temporary_data_directory


@dataclass(frozen=True, slots=True)
class Servers:
    """Where the servers of a run are.

    Attributes:
        database_url: Of a database whose role may create others and CHECKPOINT.
        redis_url: Only Waybill uses it.
    """

    database_url: str
    broker_url: str
    redis_url: str

    def database(self, name: str) -> str:
        """The ``postgresql+psycopg://`` URL of another database on the same server."""
        url = make_url(self.database_url).set(drivername="postgresql+psycopg", database=name)
        return url.render_as_string(hide_password=False)

    def recreate_database(self, name: str) -> None:
        """Give ``name`` a fresh database."""
        database = sql.Identifier(name)
        with self.connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(database))
            connection.execute(sql.SQL("CREATE DATABASE {}").format(database))

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
def servers(given: Mapping[str, str]) -> Iterator[Servers]:
    """The servers of this run; those that ``given`` does not name are started, and stopped afterwards.

    Args:
        given: Any of ``database_url``, ``broker_url`` and ``redis_url``; empty ones count as missing.
    """
    with ExitStack() as stack:
        directory = stack.enter_context(temporary_data_directory())
        yield Servers(
            database_url=given.get("database_url")
            or stack.enter_context(running(PostgresServer(directory))).superuser_url,
            broker_url=_spelled_out(
                given.get("broker_url") or stack.enter_context(running(RabbitMQServer(directory))).url
            ),
            redis_url=given.get("redis_url") or stack.enter_context(running(RedisServer(directory))).url,
        )


def _spelled_out(broker_url: str) -> str:
    """The URL with its default vhost as ``/%2F``: kombu also reads ``//`` so, pika does not."""
    return broker_url.removesuffix("//") + "/%2F" if broker_url.endswith("//") else broker_url
