"""Fixtures of the integration tests: a platform on a database of its own, a broker with empty queues."""

from collections.abc import Iterator

import pytest
from celery import Celery
from kombu import Connection

from deploy.rabbitmq_server import RabbitMQServer
from tasks.app import make_app
from tasks.names import ALL_QUEUES
from tasks.topology import declare
from tests.kit.platform import Platform, running_platform
from tests.kit.upstream import Broker


@pytest.fixture(scope="module")
def module_platform(database_url: str) -> Iterator[Platform]:
    """A migrated platform, made once a module."""
    with running_platform(database_url) as platform:
        yield platform


@pytest.fixture
def platform(module_platform: Platform) -> Platform:
    """The module's platform, without open jobs or deliveries of earlier tests."""
    module_platform.end_everything()
    return module_platform


@pytest.fixture(scope="module")
def broker(rabbitmq: RabbitMQServer) -> Iterator[Broker]:
    """A virtual host of the module's own."""
    made = Broker(rabbitmq.api_url, rabbitmq.url)
    yield made
    made.delete()


@pytest.fixture
def broker_url(rabbitmq: RabbitMQServer) -> Iterator[str]:
    """A RabbitMQ whose Celery queues are empty."""
    with Connection(rabbitmq.url) as connection:
        declare(connection)
        _purge(connection)
        yield rabbitmq.url
        _purge(connection)


def _purge(connection: Connection) -> None:
    for queue in ALL_QUEUES:
        connection.default_channel.queue_purge(queue)


@pytest.fixture
def app(broker_url: str, platform: Platform) -> Celery:
    """A Celery application on that broker and the module's database."""
    return make_app(platform.settings.model_copy(update={"broker_url": broker_url}))
