"""The commands that are one process of the platform each, as ``_MAINS`` lists them.

``waybill up`` runs them; in production a process manager or Kubernetes does.
"""

import importlib
import sys
from collections.abc import Callable
from typing import NoReturn

import click

from deploy.parent import die_with_launcher
from models.settings import load_settings
from tasks.names import ALL_QUEUES

_MAINS = {
    "api": "api_shim.main",
    "worker": "tasks.worker",
    "consumer": "consumers.main",
    "flower": "deploy.flower",
    "node": "deploy.node",
}
"""Each module has ``run(settings, …) -> int``. Imported when asked for: one process needs one of them."""


def _serve(command: str, /, **options: object) -> NoReturn:
    die_with_launcher()
    run: Callable[..., int] = importlib.import_module(_MAINS[command]).run
    sys.exit(run(load_settings(), **options))


@click.command()
def api() -> None:
    """Serve the HTTP API."""
    _serve("api")


@click.command()
@click.option("--name", default="worker", show_default=True, help="First half of its node name.")
@click.option("--queues", default=",".join(ALL_QUEUES), show_default=True, help="What it consumes.")
@click.option("--concurrency", type=click.IntRange(1, 256), help="Default: WAYBILL_WORKER_CONCURRENCY.")
@click.option("--pool", type=click.Choice(["prefork", "threads"]), default="prefork", show_default=True)
def worker(name: str, queues: str, concurrency: int | None, pool: str) -> None:
    """Run a Celery worker that applies jobs, sends deliveries and sweeps.

    One worker on all queues is no priority: to reserve capacity, run one worker for each queue.
    """
    unknown = set(queues.split(",")) - set(ALL_QUEUES)
    if unknown:
        raise click.UsageError(f"no such queue: {', '.join(sorted(unknown))}")
    _serve("worker", name=name, queues=queues.split(","), concurrency=concurrency, pool=pool)


@click.command()
def consumer() -> None:
    """Take in jobs from AMQP (the queue waybill.intake)."""
    _serve("consumer")


@click.command()
def flower() -> None:
    """Serve Flower, behind the admin's email and password."""
    _serve("flower")


@click.command()
def node() -> None:
    """API, worker threads, sweeper and Flower in one process, on memory://."""
    _serve("node")
