"""Access tokens for our own commands, signed with the platform's keys."""

from models.container import Container
from models.errors import ConfigurationError
from models.settings import Settings


def mint(settings: Settings, email: str) -> str:
    """A token that lets a local command act as this user.

    Raises:
        ConfigurationError: There is no such user.
    """
    container = Container(settings, role="token", pool_size=1)
    try:
        with container.database.snapshot() as connection:
            user = container.users.by_email(connection, email)
        if user is None or user.is_disabled:
            raise ConfigurationError(f"there is no user {email}; `waybill user list` shows who there is")
        return container.tokens.issue(user.principal, not_before=user.tokens_valid_from)
    finally:
        container.close()
