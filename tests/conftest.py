"""Fixtures for every test: real servers, started at most once a session, on own ports and data."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from deploy.postgres_server import PostgresServer
from deploy.rabbitmq_server import RabbitMQServer
from deploy.redis_server import RedisServer
from tests.kit import servers

# Machines are shared and noisy: how long an example takes says nothing about the code.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A running PostgreSQL, shared: use :func:`database_url` for a database of one's own."""
    with servers.postgres_server() as server:
        yield server


@pytest.fixture(scope="module")
def database_url(postgres: PostgresServer) -> Iterator[str]:
    """An empty database for one test module."""
    with servers.fresh_database(postgres) as url:
        yield url


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQServer]:
    """A running RabbitMQ, shared: declare queues under names of one's own."""
    with servers.rabbitmq_server() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A running Redis, shared."""
    with servers.redis_server() as server:
        yield server
