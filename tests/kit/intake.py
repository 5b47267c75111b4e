"""The AMQP intake on a virtual host and a database of its own: broker, ledger, the consumer between them."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import text

from consumers import main
from models.container import Container
from models.identity.principals import Principal, Role
from models.migrate import migrate
from models.settings import Settings, load_settings
from tests.kit.proxy import CuttableProxy, cuttable
from tests.kit.upstream import Broker, Upstream
from tests.kit.waiting import wait_until


@dataclass
class IntakePlatform:
    """What a test sees: broker, ledger, and the consumer between them."""

    broker: Broker
    upstream: Upstream
    container: Container
    settings: Settings
    to_broker: CuttableProxy
    to_database: CuttableProxy
    admin: Principal
    _running: list[tuple[threading.Thread, threading.Event]] = field(default_factory=list)

    def start(self) -> None:
        stopping = threading.Event()
        thread = threading.Thread(target=main.consume, args=(self.settings, stopping), daemon=True)
        thread.start()
        self._running.append((thread, stopping))

    def stop(self) -> None:
        for thread, stopping in self._running:
            stopping.set()
            thread.join(timeout=15)
            assert not thread.is_alive()
        self._running.clear()

    def spawn(self, **environment: str) -> "subprocess.Popen[bytes]":
        """A consumer as a process of its own, with more in its environment; it logs to its ``stdout``."""
        settings = self.settings
        common = {
            **os.environ,
            "WAYBILL_DATABASE_URL": settings.database_url,
            "WAYBILL_BROKER_URL": settings.broker_url,
            "WAYBILL_DATA_DIR": str(settings.data_dir),
            "WAYBILL_AMQP_PRINCIPALS": json.dumps(settings.amqp_principals),
        }
        command = [sys.executable, "-c", "from deploy.cli import main; main(['consumer'])"]
        return subprocess.Popen(command, env={**common, **environment}, stdout=subprocess.PIPE)

    def jobs(self, where: str = "true", **parameters: Any) -> list[Any]:
        statement = text(f"SELECT * FROM jobs WHERE {where} ORDER BY position")  # noqa: S608
        with self.container.database.snapshot() as connection:
            return list(connection.execute(statement, parameters))

    def job_of(self, message_id: str) -> Any:
        """The job of a message; waits for it."""
        where = "id = (SELECT job_id FROM idempotency_keys WHERE key = :key AND door = 'amqp')"
        found = wait_until(
            lambda: self.jobs(where, key=message_id), timeout_seconds=60, what="the job in the ledger"
        )
        return found[0]

    def named(self, mark: str, count: int) -> list[Any]:
        """The jobs whose name begins with ``mark``, in their order; waits until there are ``count``."""

        def found() -> list[Any]:
            return self.jobs("payload ->> 'name' LIKE :mark", mark=f"{mark}%")

        wait_until(lambda: len(found()) >= count, timeout_seconds=60, what=f"{count} jobs")
        return found()


@contextmanager
def intake_platform(
    broker: Broker, database_url: str, data_dir: Path, principals: Mapping[str, str], **settings: Any
) -> Iterator[IntakePlatform]:
    """The intake, running; its upstream is the broker's administrator, and an admin.

    Args:
        broker: Its virtual host.
        database_url: An empty database.
        data_dir: Keys are kept here.
        principals: More broker users, and their emails.
        **settings: Settings of the consumer.
    """
    parts = urlsplit(database_url)
    with cuttable(broker.port) as to_broker, cuttable(parts.port or 5432) as to_database:
        known = {broker.user: "upstream@example.com", **principals}
        common: dict[str, Any] = {"data_dir": data_dir, "amqp_principals": known, **settings}
        behind = load_settings(
            database_url=database_url.replace(f":{parts.port}/", f":{to_database.port}/"),
            broker_url=broker.url(to_broker.port),
            **common,
        )
        container = Container(
            load_settings(database_url=database_url, broker_url=broker.url(), **common), role="test"
        )
        migrate(container.database.engine)
        with container.database.transaction() as connection:
            admin = container.users.add(connection, "upstream@example.com", "-", Role.ADMIN)
        upstream = broker.connect()
        platform = IntakePlatform(broker, upstream, container, behind, to_broker, to_database, admin)
        platform.start()
        wait_until(lambda: is_bound(broker, "waybill.intake"), timeout_seconds=60, what="the intake queue")
        yield platform
        platform.stop()
        upstream.close()
        container.close()


def is_bound(broker: Broker, queue: str) -> bool:
    """Whether messages published to the exchange of this name reach the queue of this name."""
    found = broker.call("GET", f"/bindings/{broker.vhost}")
    return any(one["source"] == one["destination"] == queue for one in found)
