"""What must be in the database before anything starts: tables, and the first admin."""

import logging
import secrets
from collections.abc import Sequence

from models.container import Container
from models.identity.principals import Role
from models.identity.users import hash_password, password_matches
from models.migrate import StillInUse, migrate
from models.resource_type import ResourceType
from models.settings import Settings

_log = logging.getLogger("waybill.migrate")


def prepare(settings: Settings) -> str | None:
    """Bring the schema to the present version and see that an admin exists.

    What contracts is left for later where a process of an older version is connected.

    A password given by setting is the admin's from now on, also where the admin exists already.

    Returns:
        The generated password of the first admin, known only now; None when an admin existed or the
        password was given by a setting.
    """
    container = Container(settings, role="prepare")
    try:
        resources = [one.type for one in container.registry if settings.search_indexes]
        _bring_up(container, resources)
        return _ensure_admin(container)
    finally:
        container.close()


def _bring_up(container: Container, resources: Sequence[ResourceType]) -> None:
    engine, folders = container.database.engine, container.settings.migrations
    try:
        migrate(engine, folders, resources, create_tables=True, contract=True)
    except StillInUse as error:
        _log.warning("the schema is not contracted yet", extra={"reason": error.message})
        migrate(engine, folders, resources, create_tables=True)


def _ensure_admin(container: Container) -> str | None:
    settings = container.settings
    given = settings.admin_password.get_secret_value() if settings.admin_password else None
    with container.database.transaction() as connection:
        known = container.users.by_email(connection, settings.admin_email)
        if known is not None:
            if given and not password_matches(given, known):  # to set it again would end every session
                container.users.set_password(connection, settings.admin_email, hash_password(given))
            return None
        if given is None and container.users.has_admin(connection):
            return None
        password = given or secrets.token_urlsafe(12)
        container.users.add(connection, settings.admin_email, hash_password(password), Role.ADMIN)
    return None if given else password
