"""``waybill doctor``: prints what ``doctor.py`` finds; rotates keys."""

import sys
from collections.abc import Iterable
from pathlib import Path

import click
from pydantic import SecretStr

from deploy.broker.application import apply, declare_queues, missing_users
from deploy.broker.inspection import vhost_of
from deploy.broker.management import Management
from deploy.broker.policy import SHIPPED, load_policy
from deploy.doctor import Finding, broker_users, examine
from models.container import Container
from models.errors import ConfigurationError
from models.identity.keys import rotate_jwk_set
from models.identity.resealing import Resealed, reseal
from models.settings import Settings, load_settings


@click.command()
@click.option(
    "--rotate-keys",
    "is_rotating",
    is_flag=True,
    help="Make a new signing key; seal secrets under the first of WAYBILL_SEALING_KEYS. Examines nothing.",
)
@click.option(
    "--broker-permissions",
    "broker_users_mode",
    type=click.Choice(["check", "apply"]),
    help="Check, or make, least permissions of the broker users and limits of the queues, over the "
    "management API (WAYBILL_BROKER_API_URL, as an administrator). Examines nothing else.",
)
@click.option(
    "--broker-policy",
    type=click.Path(path_type=Path),
    default=SHIPPED,
    help="Roles, users and limits, where those that ship do not do.",
)
def doctor(*, is_rotating: bool, broker_users_mode: str | None, broker_policy: Path) -> None:
    """Name every URL, port, pid and log file, check each, and say how to mend what is wrong.

    Exit status 1 if something is wrong.
    """
    settings = load_settings()
    if is_rotating:
        sys.exit(0 if _rotate(settings) else 1)
    if broker_users_mode is None:
        findings = examine(settings)
    else:
        if broker_users_mode == "apply":
            _apply_broker_policy(settings, broker_policy)
        findings = broker_users(settings, broker_policy, must=True)
    sys.exit(0 if _tell(findings) else 1)


def _tell(findings: Iterable[Finding]) -> bool:
    """Print them; whether all is well."""
    is_all_well = True
    for finding in findings:
        mark = "ok  " if finding.is_well else "WRONG"
        click.echo(f"{mark:<6}{finding.part:<13}{finding.detail}")
        if not finding.is_well:
            is_all_well = False
            click.echo(f"{'':<19}→ {finding.remedy}")
    return is_all_well


def _apply_broker_policy(settings: Settings, path: Path) -> None:
    """Apply it, asking for the passwords of users to be made where there is somebody to ask."""
    if not (settings.has_broker and settings.broker_api_url):
        raise ConfigurationError("set WAYBILL_BROKER_URL and WAYBILL_BROKER_API_URL")
    policy = load_policy(path, settings.amqp_principals)
    management = Management(settings.broker_api_url)
    passwords = dict(settings.broker_passwords)
    if sys.stdin.isatty():
        for user in missing_users(management, policy):
            if user not in passwords:
                entered = click.prompt(f"Password of {user}", hide_input=True, confirmation_prompt=True)
                passwords[user] = SecretStr(entered)
    for line in apply(management, policy, vhost_of(settings.broker_url), passwords):
        click.echo(f"applied    {line}")
    declare_queues(settings.broker_url, management)
    click.echo("applied    exchanges and queues")


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
        for one in reseal(container.database, container.sealer, container.registry):
            _tell_resealed(one)
            is_all_well &= one.is_complete
    finally:
        container.close()
    return is_all_well


def _tell_resealed(one: Resealed) -> None:
    counts = {"LOST": one.lost, "BUSY": one.busy, "UNKNOWN": one.unknown}
    wrong = [name for name, count in counts.items() if count]
    told = [f"{one.sealed} sealed anew", *(f"{counts[name]} {name}" for name in wrong)]
    click.echo(f"sealing    {one.column}: {', '.join(told)}")
    for name in wrong:
        click.echo(f"{'':<11}→ {_REMEDIES[name]}")


_REMEDIES = {
    "LOST": "put the keys that sealed them back into WAYBILL_SEALING_KEYS, after the first; where they are "
    "gone for good, dead letters want a patch with the secret (waybill dead-letters redrive), or discard",
    "BUSY": "jobs that somebody else was at: run it again before you drop a key",
    "UNKNOWN": "name their resource in WAYBILL_RESOURCES, as the workers do, and run it again",
}
