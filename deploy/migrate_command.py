"""``waybill migrate``: bring the schema up, or write a migration for your own resources."""

import sys
from pathlib import Path

import click

from deploy.schema import prepare
from models.container import Container
from models.index_building import invalid_indexes
from models.migrate import migrate as bring_up
from models.migrate import write_revision
from models.revisions import Kind
from models.schema_fitness import older_than, pending, why_unfit
from models.settings import load_settings


@click.group(invoke_without_command=True)
@click.option("--create-tables", is_flag=True, help="Development: also make tables that no migration makes.")
@click.option("--admin", "with_admin", is_flag=True, help="Also see that a first admin exists.")
@click.option(
    "--contract",
    is_flag=True,
    help="Also run what only this version can live with. Refused while an older one is connected.",
)
@click.option("--check", is_flag=True, help="Change nothing; say what would be done and what is wrong.")
@click.pass_context
def migrate(
    context: click.Context, *, create_tables: bool, with_admin: bool, contract: bool, check: bool
) -> None:
    """Bring the database to the newest schema. Safe to run again, and from several places at once.

    It runs beside a platform that works: what the running version can live with (expand). What contracts
    the schema waits for --contract, once every process is of this version. A lock that cannot be had is
    tried again, briefly each time, so that nobody waits behind it.

    Migrations of your own resources are found in the folders named by WAYBILL_MIGRATIONS. Search indexes
    that are missing are built wherever PostgreSQL has the extension pg_trgm. Without
    --create-tables a registered resource whose table no migration makes is an error (exit status 1).
    """
    if context.invoked_subcommand is not None:
        return
    settings = load_settings()
    container = Container(settings, role="migrate")
    resources = [one.type for one in container.registry if settings.search_indexes]
    try:
        if check:
            sys.exit(0 if _tell_state(container) else 1)
        missing = bring_up(
            container.database.engine,
            settings.migrations,
            resources,
            create_tables=create_tables,
            contract=contract,
        )
        if missing:
            click.echo(
                f"waybill: no migration makes {', '.join(missing)}: write one with "
                "`waybill migrate new MESSAGE --folder FOLDER` and name the folder in WAYBILL_MIGRATIONS",
                err=True,
            )
            sys.exit(1)
        if not _tell_state(container):
            sys.exit(1)
    finally:
        container.close()
    if with_admin:
        password = prepare(settings)
        if password:
            click.echo(f"admin {settings.admin_email}, password {password} (shown this once)")


def _tell_state(container: Container) -> bool:
    """Say how the schema stands; whether this version can work with it and nothing in it is broken."""
    revisions = container.revisions
    _ = container.registry  # its tables belong to the schema
    with container.database.snapshot() as connection:
        reason = why_unfit(connection, revisions)
        waiting = pending(connection, revisions)
        broken = invalid_indexes(connection)
        older = [older_than(one, connection, revisions) for one in waiting if one.kind is Kind.CONTRACT][:1]
    for one in waiting:
        click.echo(f"to run: {one.kind} {one}")
    if any(older):
        click.echo(f"not before these have ended: {', '.join(map(str, older[0]))}")
    for name in broken:
        click.echo(
            f"waybill: index {name} is INVALID, its building was cut short or is under way: "
            "waybill migrate builds it anew",
            err=True,
        )
    if reason is not None:
        click.echo(f"waybill: {reason}", err=True)
    elif waiting:
        click.echo(
            "the schema is current; what is to run contracts it: waybill migrate --contract, once "
            "no process of an older version runs"
        )
    else:
        click.echo("the schema is current")
    return reason is None and not broken


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
    bring_up(container.database.engine, known, contract=True)  # it is compared with the newest schema
    path = write_revision(container.database.engine, message, folder)
    container.close()
    click.echo(f"wrote {path}")
