"""``waybill user``: add users, change what they are and how they log in, list who there is."""

from collections.abc import Callable
from typing import TypeVar

import click
from sqlalchemy import Connection

from models.container import Container
from models.errors import NotFound
from models.identity.principals import Role
from models.identity.users import hash_password
from models.settings import load_settings


@click.group()
def user() -> None:
    """Add users, change, disable and list them."""


@user.command()
@click.argument("email")
@click.option("--role", type=click.Choice([str(role) for role in Role]), default="user", show_default=True)
@click.password_option(help="Asked for when not given.")
def add(email: str, role: str, password: str) -> None:
    """Add a user."""
    added = _change(
        lambda container, connection: container.users.add(
            connection, email, hash_password(password), Role(role)
        )
    )
    click.echo(f"added {added.email}, {added.role}, {added.id}")


@user.command()
@click.argument("email")
@click.password_option(help="Asked for when not given.")
def password(email: str, password: str) -> None:
    """Change a user's password. Ends its sessions."""
    hashed = hash_password(password)
    _change(lambda container, connection: container.users.set_password(connection, email, hashed))
    click.echo(f"changed the password of {email}")


@user.command()
@click.argument("email")
def disable(email: str) -> None:
    """Shut a user out: within seconds, tokens that it has included."""
    _change(lambda container, connection: container.users.set_disabled(connection, email, is_disabled=True))
    click.echo(f"{email} is disabled")


@user.command()
@click.argument("email")
def enable(email: str) -> None:
    """Let a disabled user log in again."""
    _change(lambda container, connection: container.users.set_disabled(connection, email, is_disabled=False))
    click.echo(f"{email} is enabled")


@user.command()
@click.argument("email")
@click.argument("role", type=click.Choice([str(role) for role in Role]))
def role(email: str, role: str) -> None:
    """Change a user's role. In force within seconds; ends its sessions."""
    _change(lambda container, connection: container.users.set_role(connection, email, Role(role)))
    click.echo(f"{email} is {role}")


@user.command("mfa-off")
@click.argument("email")
def mfa_off(email: str) -> None:
    """Take off a user's second factor, when it has lost it. Ends its sessions."""

    def take_off(container: Container, connection: Connection) -> bool:
        known = container.users.by_email(connection, email)
        if known is None:
            raise NotFound(f"There is no user {email}")
        container.users.end_sessions(connection, known.principal.id)
        return container.second_factors.take_off(connection, known.principal.id)

    had_one = _change(take_off)
    click.echo(f"{email} has no second factor now" if had_one else f"{email} had no second factor")


@user.command("list")
def list_() -> None:
    """List users."""
    everybody = _change(lambda container, connection: container.users.all(connection))
    for one in everybody:
        note = "  disabled" if one.is_disabled else ""
        click.echo(f"{one.principal.id}  {one.principal.role:<6}{one.principal.email}{note}")


_Result = TypeVar("_Result")


def _change(work: Callable[[Container, Connection], _Result]) -> _Result:
    """What ``work`` gives, in one transaction."""
    container = Container(load_settings(), role="user", pool_size=1)
    try:
        with container.database.transaction() as connection:
            return work(container, connection)
    finally:
        container.close()
