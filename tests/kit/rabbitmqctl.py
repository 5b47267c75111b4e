"""RabbitMQ's own tool, for servers of our launcher. Breaks a queue where a test asks for it."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.rabbitmq_server import RabbitMQServer, find_rabbitmq


def rabbitmqctl(broker: RabbitMQServer, *arguments: str) -> None:
    """Run it against ``broker``.

    Raises:
        CalledProcessError: It failed.
    """
    programs = Path(find_rabbitmq()).parent
    environment = broker._environment()
    environment["PATH"] = f"{programs}{os.pathsep}{environment['PATH']}"
    subprocess.run(("rabbitmqctl", *arguments), env=environment, check=True, capture_output=True, timeout=60)


@contextmanager
def silenced(broker: RabbitMQServer, queue: str) -> Iterator[None]:
    """A quorum queue that takes nothing and says nothing, as one without a majority."""
    rabbitmqctl(broker, "eval", f"sys:suspend('waybill_{queue}').")
    try:
        yield
    finally:
        rabbitmqctl(broker, "eval", f"sys:resume('waybill_{queue}').")
