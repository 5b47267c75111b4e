"""``waybill doctor``: prints what ``doctor.py`` finds."""

import sys

import click

from deploy.doctor import examine
from models.settings import load_settings


@click.command()
def doctor() -> None:
    """Name every URL, port, pid and log file, check each, and say how to mend what is wrong.

    Exit status 1 if something is wrong.
    """
    is_all_well = True
    for finding in examine(load_settings()):
        mark = "ok  " if finding.is_well else "WRONG"
        click.echo(f"{mark:<6}{finding.part:<11}{finding.detail}")
        if not finding.is_well:
            is_all_well = False
            click.echo(f"{'':<17}→ {finding.remedy}")
    sys.exit(0 if is_all_well else 1)
