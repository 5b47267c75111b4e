"""The first chaos run: a demo on the full platform, a worker and RabbitMQ killed in the middle of it.

Afterwards the same data is started again, brought to rest, and looked over.
"""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psutil
from dotenv import dotenv_values

from deploy.data_directory import DataDirectory
from tests.chaos import ledger
from tests.chaos.broker import full_queues
from tests.kit.client import Client
from tests.kit.launched import Launched, ended, launched_whole
from tests.kit.upstream import ManagementApi
from tests.kit.waiting import wait_until

REST_SECONDS = 120.0
"""A delivery that was claimed by somebody who died is claimable again after 60."""


@dataclass(frozen=True, slots=True)
class Seed:
    """How a run ended.

    Attributes:
        demo_status: The demo's exit status.
        demo_output: All that it said.
        killed: The processes killed: kind and pid.
        violations: What the checker found; empty when the promise was kept.
    """

    demo_status: int
    demo_output: str
    killed: tuple[tuple[str, int], ...]
    violations: tuple[str, ...]


def run(directory: DataDirectory, jobs: int, *, say: Callable[[str], None] = lambda _: None) -> Seed:
    """Run it.

    Args:
        directory: A fresh data directory.
        jobs: How many the demo sends; a few thousand, so that there is a middle.
        say: Receives what happens.
    """
    killed = []
    with launched_whole(directory, "--full", "--demo", str(jobs)) as up:
        for share, kind in ((5, "worker"), (2, "rabbitmq")):
            database_url = _await_applied(up, jobs // share)
            pid = up.processes()[kind][0]
            killed.append((kind, pid))
            family = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
            os.kill(pid, signal.SIGKILL)
            say(f"killed {kind} (pid {pid}) after {ledger.count_jobs(database_url, 'succeeded')} jobs")
            if kind == "worker":
                wait_until(lambda those=family: all(ended(one) for one in those), what="no orphan of it")
        status = up.wait_exit(300)
        output = up.said()
    say(f"the demo ended with status {status}")
    return Seed(status, output, tuple(killed), tuple(_found_at_rest(directory, jobs, say)))


def _await_applied(up: Launched, count: int) -> str:
    """Wait until so many jobs have succeeded while the demo runs; the database's URL."""
    file = up.directory.run / "waybill.env"
    wait_until(lambda: file.exists() or up.process.poll() is not None, timeout_seconds=90, what="servers")
    database_url = str(dotenv_values(file)["WAYBILL_DATABASE_URL"])
    wait_until(lambda: "Admin login" in up.said(), timeout_seconds=90, what="the platform is ready")
    wait_until(
        lambda: ledger.count_jobs(database_url, "succeeded") >= count,
        timeout_seconds=90,
        what=f"{count} jobs have succeeded",
    )
    assert up.process.poll() is None, up.said()
    return database_url


def _found_at_rest(directory: DataDirectory, jobs: int, say: Callable[[str], None]) -> Iterator[str]:
    with launched_whole(directory, "--full") as up:
        up.wait_ready()
        settings = dotenv_values(directory.run / "waybill.env")
        database_url = str(settings["WAYBILL_DATABASE_URL"])
        broker = ManagementApi(str(settings["WAYBILL_BROKER_API_URL"]))
        wait_until(
            lambda: ledger.is_outbox_empty(database_url), timeout_seconds=REST_SECONDS, what="outbox empty"
        )
        wait_until(lambda: not full_queues(broker), timeout_seconds=30, what="queues empty")
        say("outbox and queues are empty")
        accepted = ledger.count_jobs(database_url)
        if accepted != jobs:
            yield f"{accepted} jobs in the ledger, and {jobs} requests"
        yield from ledger.violations(database_url)
        ready = Client(f"http://127.0.0.1:{up.api_port}").call("GET", "/health/ready")
        if ready.status != 200:
            yield f"not ready: {ready.body!r}"
