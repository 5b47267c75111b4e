"""``waybill token``: an access token for a user, for scripts on this machine."""

import click

from deploy.tokens import mint
from models.settings import load_settings


@click.command()
@click.argument("email", required=False)
def token(email: str | None) -> None:
    """Print an access token for EMAIL (default: the admin), good for 30 minutes.

    Needs the signing keys of this installation (WAYBILL_DATA_DIR or WAYBILL_JWT_KEYS) and its database.
    """
    settings = load_settings()
    click.echo(mint(settings, email or settings.admin_email))
