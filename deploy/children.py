"""Which processes of our own run in which mode: a table to read. How they are kept: ``supervisor.py``."""

import sys
from collections.abc import Mapping

from deploy.child import ChildSpec
from deploy.data_directory import DataDirectory
from models.job import Priority
from models.settings import Settings
from tasks.names import DELIVERIES_QUEUE, JOB_QUEUES


def _own(command: str, *options: str, name: str = "", kinds: tuple[str, ...] = ()) -> ChildSpec:
    # -P: a folder named ``deploy`` in the working directory must not be taken for ours.
    program = (sys.executable, "-P", "-m", "deploy.cli", command)
    return ChildSpec(name or command, kinds or (command,), (*program, *options))


def _worker(name: str, queue: str, *options: str) -> ChildSpec:
    return _own("worker", "--name", name, "--queues", queue, *options, name=name)


EMBEDDED = (_own("node", kinds=("api", "worker", "flower")),)
"""Everything in one process: Celery's ``memory://`` queues are local to it."""

FULL = (
    _own("api"),
    _worker("worker", JOB_QUEUES[Priority.NORMAL]),
    _worker("worker-high", JOB_QUEUES[Priority.HIGH], "--concurrency", "1"),
    _worker("worker-bulk", JOB_QUEUES[Priority.BULK], "--concurrency", "1"),
    _worker("worker-deliveries", DELIVERIES_QUEUE, "--concurrency", "4", "--pool", "threads"),
    _own("consumer"),
    _own("flower"),
)
"""With a real broker each stands alone and is restarted alone. Each queue has a worker of its own, so that
no priority waits for another, and no slow callback for a job."""

STOP_PHASES: tuple[tuple[tuple[str, ...], float], ...] = (
    (("api", "consumer", "worker", "flower"), 10.0),
    (("rabbitmq", "redis", "postgres"), 8.0),
)
"""Who ends together, and the seconds they get: 18 in all at the worst, of the 20 that are promised.

Ours need not wait for each other: what one has not done is in the ledger. Nobody uses the servers any more
when their turn comes, so they end side by side (RabbitMQ alone takes 6 s).
"""


def child_environment(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """The launcher's environment, with what it found out: URLs, ports and the absolute data directory."""
    metrics = DataDirectory(settings.data_dir).metrics
    found = {
        "WAYBILL_DATABASE_URL": settings.database_url,
        "WAYBILL_BROKER_URL": settings.broker_url,
        "WAYBILL_REDIS_URL": settings.redis_url,
        "WAYBILL_BROKER_API_URL": settings.broker_api_url,
        "WAYBILL_DATA_DIR": str(settings.data_dir),
        "WAYBILL_API_HOST": settings.api_host,
        "WAYBILL_API_PORT": str(settings.api_port),
        "WAYBILL_FLOWER_PORT": str(settings.flower_port),
        "WAYBILL_RATE_LIMITS": settings.rate_limits,
        "WAYBILL_DRAIN_SECONDS": "0",  # who stops the whole platform has nothing to send its clients to
        "PROMETHEUS_MULTIPROC_DIR": str(metrics) if settings.has_broker else "",
    }
    return {**environ, **{name: value for name, value in found.items() if value}}
