"""The commands that are one process of the platform each, as ``_MAINS`` lists them.

``waybill up`` runs them; in production a process manager or Kubernetes does.
"""

import importlib
from collections.abc import Callable
from typing import cast

import click

from deploy.parent import die_with_launcher
from models.settings import Settings, load_settings

_MAINS = {
    "api": "api_shim.main",
    "worker": "tasks.main",
    "consumer": "consumers.main",
    "flower": "deploy.flower",
    "node": "deploy.node",
}
"""Each module has ``run(settings) -> None``. Imported when asked for: one process needs only one of them."""


def _command(name: str, purpose: str) -> click.Command:
    @click.command(name, help=purpose)
    def command() -> None:
        die_with_launcher()
        run = cast(Callable[[Settings], None], importlib.import_module(_MAINS[name]).run)
        run(load_settings())

    return command


api = _command("api", "Serve the HTTP API.")
worker = _command("worker", "Run a Celery worker (prefork) that applies jobs, delivers outcomes and sweeps.")
consumer = _command("consumer", "Take in jobs from AMQP (the queue waybill.intake).")
flower = _command("flower", "Serve Flower, behind the admin's email and password.")
node = _command("node", "API, worker threads, sweeper and Flower in one process, on memory://.")
