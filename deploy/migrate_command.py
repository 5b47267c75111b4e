"""``waybill migrate``: bring the schema up, or write a migration for your own resources."""

import sys
from pathlib import Path

import click

from deploy.schema import prepare
from models.container import Container
from models.migrate import migrate as bring_up
from models.migrate import write_revision
from models.settings import load_settings


@click.group(invoke_without_command=True)
@click.option("--create-tables", is_flag=True, help="Development: also make tables that no migration makes.")
@click.option("--admin", "with_admin", is_flag=True, help="Also see that a first admin exists.")
@click.pass_context
def migrate(context: click.Context, *, create_tables: bool, with_admin: bool) -> None:
    """Bring the database to the newest schema. Safe to run again, and from several places at once.

    Migrations of your own resources are found in the folders named by WAYBILL_MIGRATIONS. Search indexes
    that are missing are built wherever PostgreSQL has the extension pg_trgm. Without
    --create-tables a registered resource whose table no migration makes is an error (exit status 1).
    """
    if context.invoked_subcommand is not None:
        return
    settings = load_settings()
    container = Container(settings, role="migrate")
    resources = [one.type for one in container.registry if settings.search_indexes]
    missing = bring_up(container.database.engine, settings.migrations, resources, create_tables=create_tables)
    container.close()
    if missing:
        click.echo(
            f"waybill: no migration makes {', '.join(missing)}: write one with "
            "`waybill migrate new MESSAGE --folder FOLDER` and name the folder in WAYBILL_MIGRATIONS",
            err=True,
        )
        sys.exit(1)
    click.echo("the schema is current")
    if with_admin:
        password = prepare(settings)
        if password:
            click.echo(f"admin {settings.admin_email}, password {password} (shown this once)")


@migrate.command()
@click.argument("message")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Where to write it; name it in WAYBILL_MIGRATIONS afterwards.",
)
def new(message: str, folder: Path) -> None:
    """Write a migration for what registered resources have and the database lacks. Read it before it runs."""
    settings = load_settings()
    container = Container(settings, role="migrate")
    _ = container.registry
    known = [one for one in settings.migrations if one.is_dir()]
    bring_up(container.database.engine, known)
    path = write_revision(container.database.engine, message, folder)
    container.close()
    click.echo(f"wrote {path}")
