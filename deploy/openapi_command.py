"""``waybill openapi``: the HTTP contract on standard output, for generators and reviews."""

import json

import click

from models.registry import discover
from models.settings import load_settings


@click.command()
def openapi() -> None:
    """Print the OpenAPI 3.1 document of every registered resource."""
    registry = discover(load_settings().resources)
    click.echo(json.dumps(document(registry), indent=2, ensure_ascii=False))
