"""Two versions side by side: rolled out over a schema that expands, on the same queues and lanes."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from deploy.ports import free_port
from deploy.postgres_server import PostgresServer
from deploy.rabbitmq_server import RabbitMQServer
from deploy.readiness import ask_ready
from deploy.schema import prepare
from deploy.server import is_running
from models.settings import Settings
from tasks.names import DEAD_MESSAGES
from tests.e2e.conftest import ADMIN, CHECKOUT, PASSWORD
from tests.kit.client import Client
from tests.kit.next_version import CONTRACT, EXPAND, VERSION, make_next_version
from tests.kit.servers import fresh_database
from tests.kit.upstream import Broker
from tests.kit.waiting import wait_until

LANES, ROUNDS = 12, 24
_WITNESS = """
CREATE TABLE seen_applied (job_id uuid, by text);
CREATE FUNCTION see_applied() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO waybill.seen_applied VALUES (NEW.id, current_setting('application_name'));
    RETURN NULL;
END $$;
CREATE TRIGGER see_applied AFTER UPDATE OF state ON jobs
FOR EACH ROW WHEN (NEW.state = 'succeeded') EXECUTE FUNCTION see_applied();
"""


@dataclass
class Version:
    """A version of the program, and what of it runs."""

    code: Path
    folder: Path
    environment: dict[str, str]
    port: int = field(default_factory=free_port)
    running: dict[str, psutil.Popen] = field(default_factory=dict)

    def environ(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("WAYBILL_")}
        own = {"PYTHONPATH": str(self.code), "WAYBILL_API_PORT": str(self.port)}
        return inherited | self.environment | own

    def start(self, command: str, *options: str) -> None:
        with (self.folder / f"{command}-{self.port}.log").open("w") as log:
            self.running[command] = psutil.Popen(
                [sys.executable, "-P", "-m", "deploy.cli", command, *options],
                env=self.environ(),
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-P", "-m", "deploy.cli", *arguments],
            env=self.environ(),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def wait_ready(self) -> None:
        wait_until(
            lambda: ask_ready(f"http://127.0.0.1:{self.port}").is_ready,
            timeout_seconds=90,
            every_seconds=0.2,
            what=f"{self.code} is ready",
        )

    def client(self) -> Client:
        made = Client(f"http://127.0.0.1:{self.port}")
        made.log_in(ADMIN, PASSWORD)
        return made

    def stop(self) -> None:
        """As a process manager does; whatever does not end is killed."""
        for process in self.running.values():
            if is_running(process):
                process.terminate()
        for process in self.running.values():
            children = process.children(recursive=True) if is_running(process) else []
            _, left = psutil.wait_procs([process, *children], timeout=30)
            for one in left:
                one.kill()
        self.running.clear()


@pytest.fixture
def versions(
    postgres: PostgresServer, rabbitmq: RabbitMQServer, tmp_path: Path
) -> Iterator[tuple[Version, Version, str, Broker]]:
    """The present version, running, and the next one; database and broker that they share."""
    broker = Broker(rabbitmq.api_url, rabbitmq.url)
    with ExitStack() as stack:
        stack.callback(broker.delete)
        url = stack.enter_context(fresh_database(postgres))
        environment = {
            "WAYBILL_DATABASE_URL": url,
            "WAYBILL_BROKER_URL": broker.url(),
            "WAYBILL_DATA_DIR": str(tmp_path / "data"),
            "WAYBILL_WORKER_CONCURRENCY": "1",
            "WAYBILL_RATE_LIMITS": "off",
        }
        settings = Settings(
            _env_file=None, database_url=url, data_dir=tmp_path / "data", admin_password=PASSWORD
        )
        prepare(settings)
        with psycopg.connect(url) as connection:
            connection.execute(_WITNESS)
        present = Version(CHECKOUT, tmp_path, environment)
        following = Version(make_next_version(tmp_path / "next"), tmp_path, environment)
        for version in (present, following):
            stack.callback(version.stop)
        present.start("api")
        present.start("worker", "--name", "present")
        present.wait_ready()
        yield present, following, url, broker


@contextmanager
def load(client: Client) -> Iterator[list[str]]:
    """Somebody who submits, one job after the other, for the length of a block; the ids."""
    ids: list[str] = []
    is_over = threading.Event()

    def submit() -> None:
        while not is_over.wait(0.02):
            answer = client.call("POST", "entities", {"name": f"load {len(ids)}"})
            assert answer.status == 202, answer.body
            ids.append(answer.json["id"])

    with ThreadPoolExecutor(1) as submitter:
        submitting = submitter.submit(submit)
        wait_until(lambda: ids or submitting.done())
        try:
            yield ids
        finally:
            is_over.set()
            submitting.result(60)


def lane(number: int, clients: tuple[Client, Client]) -> list[str]:
    """A creation and the patches of what it makes, through both APIs in turn; the ids, in their order."""
    ids: list[str] = []
    path = "entities"
    for step in range(ROUNDS):
        method, body = (
            ("PATCH", {"description": f"step {step}"}) if ids else ("POST", {"name": f"lane {number}"})
        )
        answer = clients[(step + number) % 2].call(method, path, body)
        assert answer.status == 202, answer.body
        ids.append(answer.json["id"])
        path = f"entities/{answer.json['resourceId']}"
    return ids


def version_in(application_name: str) -> str:
    """Which version a connection's name tells."""
    return application_name.partition("/")[2].partition("+")[0]


def rows(url: str, query: str) -> list[Any]:
    with psycopg.connect(url) as connection:
        return connection.execute(query).fetchall()  # type: ignore[arg-type]


@pytest.mark.timeout(400)
def test_two_versions_share_queues_and_lanes_until_the_older_has_gone(
    versions: tuple[Version, Version, str, Broker],
) -> None:
    present, following, url, broker = versions

    # migrated under the load of the present version
    with load(present.client()) as loaded:
        migrated = following.run("migrate")
        so_far = len(loaded)
        wait_until(lambda: len(loaded) > so_far, timeout_seconds=60, what="the present version goes on")
    assert migrated.returncode == 0, migrated.stderr
    assert f"to run: contract {CONTRACT} (of a test)" in migrated.stdout
    assert "not before these have ended: waybill " in migrated.stdout

    # both run, and both are ready
    following.start("api")
    following.start("worker", "--name", "following")
    following.wait_ready()
    wait_until(
        lambda: VERSION in {version_in(name) for (name,) in rows(url, _SWEEPERS)},
        timeout_seconds=60,
        what="the next version's worker is there",
    )
    present.wait_ready()

    # the same lanes through both
    clients = (present.client(), following.client())
    with ThreadPoolExecutor(LANES) as submitters:
        lanes = list(submitters.map(lambda number: lane(number, clients), range(LANES)))
    wait_until(
        lambda: rows(url, "SELECT count(*) FROM jobs WHERE finished_at IS NULL") == [(0,)],
        timeout_seconds=120,
        every_seconds=0.2,
        what="every job is final",
    )
    assert rows(url, "SELECT state, count(*) FROM jobs GROUP BY state") == [
        ("succeeded", len(loaded) + LANES * ROUNDS)
    ]
    versions_of = {str(job): version for job, version in rows(url, "SELECT id, version FROM jobs")}
    for ids in lanes:
        assert [versions_of[one] for one in ids] == list(range(1, ROUNDS + 1))
    applied = rows(url, "SELECT job_id, by FROM seen_applied")
    assert len({job for job, _ in applied}) == len(applied) == len(versions_of)
    by_version = {version_in(by) for _, by in applied}
    assert len(by_version) == 2
    assert VERSION in by_version

    assert broker.unsettled(DEAD_MESSAGES) == 0  # each took what the other announced

    # contracted once the older one has gone
    refused = following.run("migrate", "--contract")
    assert refused.returncode == 1
    assert (
        f"migration {CONTRACT} (of a test) contracts the schema, and processes run that do not know it: "
        in (refused.stderr)
    )
    assert VERSION not in refused.stderr
    assert rows(url, "SELECT version_num FROM alembic_version") == [(EXPAND,)]
    present.stop()
    contracted = following.run("migrate", "--contract")
    assert contracted.returncode == 0, contracted.stderr
    assert contracted.stdout == "the schema is current\n"
    assert ask_ready(f"http://127.0.0.1:{following.port}").is_ready
    outcome = clients[1].outcome("POST", "entities", {"name": "after"})
    assert outcome.status == 201, outcome.body


_SWEEPERS = "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'waybill-sweeper/%'"
