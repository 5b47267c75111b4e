"""``waybill submit``: send one write through the API, as a client would."""

import json
import sys
import uuid

import click
import urllib3

from deploy.readiness import http_url
from deploy.tokens import mint
from models.settings import load_settings

_METHODS = {"create": "POST", "replace": "PUT", "patch": "PATCH", "delete": "DELETE"}


@click.command()
@click.argument("operation", type=click.Choice(list(_METHODS)))
@click.argument("resource")
@click.argument("identifier", required=False, metavar="[ID]")
@click.option("--data", default=None, help="The JSON document; - reads it from standard input.")
@click.option(
    "--wait", "wait_seconds", type=click.IntRange(0, 30), default=0, help="Wait so long for the outcome."
)
@click.option("--key", default=None, help="Idempotency-Key; a fresh one by default.")
@click.option("--as", "email", default=None, help="Whose token to use; the admin's by default.")
def submit(
    operation: str,
    resource: str,
    identifier: str | None,
    data: str | None,
    wait_seconds: int,
    key: str | None,
    email: str | None,
) -> None:
    """Submit one job, and print the answer.

    For example: waybill submit create entities --data '{"name": "first"}' --wait 10
    """
    settings = load_settings()
    if operation != "create" and identifier is None:
        raise click.UsageError(f"{operation} needs the ID of an instance")
    body = sys.stdin.read() if data == "-" else data
    headers = {
        "Authorization": f"Bearer {mint(settings, email or settings.admin_email)}",
        "Idempotency-Key": key or str(uuid.uuid4()),
    }
    if body is not None:
        headers["Content-Type"] = (
            "application/merge-patch+json" if operation == "patch" else "application/json"
        )
    if wait_seconds:
        headers["Prefer"] = f"wait={wait_seconds}"
    path = f"/api/v1/{resource}" + (f"/{identifier}" if identifier else "")
    api = http_url(settings.api_host, settings.api_port)
    try:
        answer = urllib3.request(
            _METHODS[operation],
            api + path,
            body=body,
            headers=headers,
            timeout=wait_seconds + 10,
            retries=False,
        )
    except urllib3.exceptions.HTTPError as error:
        click.echo(
            f"waybill: {api} does not answer ({type(error).__name__}): is `waybill up` running?", err=True
        )
        sys.exit(1)
    click.echo(_pretty(answer.data) or f"{answer.status}")
    sys.exit(0 if answer.status < 400 else 1)


def _pretty(body: bytes) -> str:
    return json.dumps(json.loads(body), indent=2, ensure_ascii=False) if body else ""
