"""``waybill chaos``: the seed run of ``seed.py``, for people."""

import click

from tests.chaos import seed
from tests.kit.servers import temporary_data_directory


@click.command()
@click.option("--jobs", default=5000, show_default=True, type=click.IntRange(100), help="Jobs that it sends.")
def chaos(jobs: int) -> None:
    """Run a demo on a platform of its own, kill a worker and RabbitMQ meanwhile, check the ledger.

    Touches nothing that runs already. Exit status 0 only if every job succeeded and no rule was broken.
    """
    with temporary_data_directory() as directory:
        result = seed.run(directory, jobs, say=lambda line: click.echo(f"chaos: {line}"))
    for line in result.demo_output.splitlines():
        if line.startswith(("demo:", "submit", "succeeded:", "requests", "fault")):
            click.echo(line)
    for violation in result.violations:
        click.echo(f"BROKEN: {violation}")
    if result.demo_status != 0 or result.violations:
        raise SystemExit(1)
    click.echo("chaos: every job ended once and succeeded, every end was told, nothing is left over")
