"""``waybill asyncapi``: the AMQP contract on standard output, for generators and reviews."""

import json

import click

from models.registry import discover
from models.settings import load_settings
from tasks.asyncapi import document


@click.command()
def asyncapi() -> None:
    """Print the AsyncAPI 3.0 document of every registered resource. Needs no running platform."""
    registry = discover(load_settings().resources)
    click.echo(json.dumps(document(registry), indent=2, ensure_ascii=False))
