"""``waybill up``: options in, exit status out. The work: ``launcher.py``."""

import sys
from contextlib import suppress

import click

from deploy.launcher import Launcher
from models import log
from models.settings import load_settings


@click.command()
@click.option("--full", is_flag=True, help="RabbitMQ, Redis, prefork workers and the AMQP intake as well.")
@click.option(
    "--demo", "demo_jobs", type=click.IntRange(min=1), metavar="N", help="Send N real jobs, then stop."
)
def up(*, full: bool, demo_jobs: int | None) -> None:
    """Start the platform and keep it running until Ctrl-C.

    Starts PostgreSQL (and with --full RabbitMQ and Redis) where no URL is set, makes tables and the first
    admin, then runs API, worker and Flower, and restarts whatever ends. A second start finds its data in
    WAYBILL_DATA_DIR (default .waybill).
    """
    settings = load_settings(with_run_file=False)
    log.configure(settings.log_level)
    launcher = Launcher(settings, full=full, show=_show)
    sys.exit(launcher.run(demo_jobs))


def _show(line: str) -> None:
    """A full disk behind our output, or a reader that has gone, ends nothing."""
    with suppress(OSError):
        print(line, flush=True)
