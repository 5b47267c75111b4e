"""``waybill doctor``: prints what ``doctor.py`` finds; rotates keys."""

import sys

import click

from deploy.doctor import examine
from models.container import Container
from models.errors import ConfigurationError
from models.identity.keys import rotate_jwk_set
from models.identity.resealing import reseal
from models.settings import Settings, load_settings


@click.command()
@click.option(
    "--rotate-keys",
    "is_rotating",
    is_flag=True,
    help="Make a new signing key; seal secrets under the first of WAYBILL_SEALING_KEYS. Examines nothing.",
)
def doctor(*, is_rotating: bool) -> None:
    """Name every URL, port, pid and log file, check each, and say how to mend what is wrong.

    Exit status 1 if something is wrong.
    """
    if is_rotating:
        sys.exit(0 if _rotate(load_settings()) else 1)
    is_all_well = True
    for finding in examine(load_settings()):
        mark = "ok  " if finding.is_well else "WRONG"
        click.echo(f"{mark:<6}{finding.part:<11}{finding.detail}")
        if not finding.is_well:
            is_all_well = False
            click.echo(f"{'':<17}→ {finding.remedy}")
    sys.exit(0 if is_all_well else 1)


def _rotate(settings: Settings) -> bool:
    """Rotate what can be rotated here, and say what was done; whether all went well."""
    try:
        keys = rotate_jwk_set(settings)["keys"]
        click.echo(
            f"signing    new key {keys[0]['kid']}; {len(keys) - 1} older still verify. "
            "Running processes take it up within seconds."
        )
    except ConfigurationError as error:
        if settings.jwt_keys is None:
            raise
        click.echo(f"signing    left alone: {error}")
    container = Container(settings, role="doctor", pool_size=1)
    is_all_well = True
    try:
        for one in reseal(container.database, container.sealer):
            click.echo(
                f"sealing    {one.column}: {one.sealed} sealed anew" + f", {one.lost} LOST" * (one.lost > 0)
            )
            is_all_well &= one.lost == 0
    finally:
        container.close()
    if not is_all_well:
        click.echo(f"{'':<11}→ put the keys that sealed them back into WAYBILL_SEALING_KEYS, after the first")
    return is_all_well
