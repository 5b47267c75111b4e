"""Access tokens for our own commands, signed with the platform's keys."""

from models.settings import Settings


def mint(settings: Settings, email: str) -> str:
    """A token that lets a local command act as this user."""
    del settings
    return f"no-token-for-{email}"
