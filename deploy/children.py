"""Which processes of our own run in which mode: a table to read. How they are kept: ``supervisor.py``."""

import sys
from collections.abc import Mapping

from deploy.child import ChildSpec
from models.settings import Settings


def _own(name: str, *kinds: str) -> ChildSpec:
    # -P: a folder named ``deploy`` in the working directory must not be taken for ours.
    return ChildSpec(name, kinds or (name,), (sys.executable, "-P", "-m", "deploy.cli", name))


EMBEDDED = (_own("node", "api", "worker", "flower"),)
"""Everything in one process: Celery's ``memory://`` queues are local to it."""

FULL = (_own("api"), _own("worker"), _own("consumer"), _own("flower"))
"""With a real broker each stands alone and is restarted alone."""

STOP_PHASES: tuple[tuple[tuple[str, ...], float], ...] = (
    (("api",), 3.0),
    (("consumer",), 2.0),
    (("worker", "flower"), 5.0),
    (("rabbitmq", "redis", "postgres"), 8.0),
)
"""Who ends together, and the seconds they get: 18 in all at the worst, of the 20 that are promised.

Nobody uses the servers any more when their turn comes, so they end side by side (RabbitMQ alone takes 6 s).
"""


def child_environment(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """The launcher's environment, with what it found out: URLs, ports and the absolute data directory."""
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
    }
    return {**environ, **{name: value for name, value in found.items() if value}}
