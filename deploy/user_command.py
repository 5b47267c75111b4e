"""``waybill user``: add users, change passwords, list who there is."""

import click

from models.container import Container
from models.identity.principals import Role
from models.identity.users import hash_password
from models.settings import load_settings


@click.group()
def user() -> None:
    """Add users, change their passwords, list them."""


@user.command()
@click.argument("email")
@click.option("--role", type=click.Choice([str(role) for role in Role]), default="user", show_default=True)
@click.password_option(help="Asked for when not given.")
def add(email: str, role: str, password: str) -> None:
    """Add a user."""
    container = Container(load_settings(), role="user", pool_size=1)
    with container.database.transaction() as connection:
        added = container.users.add(connection, email, hash_password(password), Role(role))
    container.close()
    click.echo(f"added {added.email}, {added.role}, {added.id}")


@user.command()
@click.argument("email")
@click.password_option(help="Asked for when not given.")
def password(email: str, password: str) -> None:
    """Change a user's password."""
    container = Container(load_settings(), role="user", pool_size=1)
    with container.database.transaction() as connection:
        container.users.set_password(connection, email, hash_password(password))
    container.close()
    click.echo(f"changed the password of {email}")


@user.command("list")
def list_() -> None:
    """List users."""
    container = Container(load_settings(), role="user", pool_size=1)
    with container.database.snapshot() as connection:
        everybody = container.users.all(connection)
    container.close()
    for one in everybody:
        note = "  disabled" if one.is_disabled else ""
        click.echo(f"{one.principal.id}  {one.principal.role:<6}{one.principal.email}{note}")
