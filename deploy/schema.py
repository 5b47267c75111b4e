"""What must be in the database before anything starts: tables, and the first admin."""

from models.settings import Settings


def prepare(settings: Settings) -> str | None:
    """Bring the schema to the present version and see that an admin exists.

    Returns:
        The generated password of the first admin, known only now; None when an admin existed or the
        password was given by a setting.
    """
    del settings
    return None
