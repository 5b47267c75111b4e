"""``waybill openapi``: the HTTP contract on standard output, for generators and reviews."""

import json

import click

from api_shim.announcing import SilentAnnouncer
from api_shim.description.openapi import describe
from api_shim.server import build
from models.container import Container
from models.settings import load_settings

_NOWHERE = "postgresql+psycopg://nowhere/"


@click.command()
def openapi() -> None:
    """Print the OpenAPI 3.1 document of every registered resource. Needs no running platform."""
    settings = load_settings()
    settings = settings.model_copy(update={"database_url": settings.database_url or _NOWHERE})
    container = Container(settings, role="openapi")
    edge = build(container, SilentAnnouncer())
    document = describe(list(edge.app.router), container.registry)
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))
