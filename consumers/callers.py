"""Callers: on whose behalf an upstream message speaks. No permissions; see ``desk.py``."""

import time
from collections.abc import Mapping

from sqlalchemy import exc

from consumers.envelope import Arrival
from models.database import Database
from models.errors import DatabaseUnavailable, Unauthorized
from models.identity.principals import Principal
from models.identity.tokens import Tokens
from models.identity.users import Users

REMEMBER_SECONDS = 5.0
"""How long a user or token is remembered; so long a disabled user may go on."""

_MAX_REMEMBERED = 2_000


class Callers:
    """Tells who speaks: a bearer token in the message, else the broker's own word (``user_id``).

    Args:
        database: Where the users are.
        users: Finds them.
        tokens: Verifies access tokens.
        emails: Broker user -> email.
    """

    def __init__(self, database: Database, users: Users, tokens: Tokens, emails: Mapping[str, str]) -> None:
        self._database = database
        self._users = users
        self._tokens = tokens
        self._emails = emails
        self._remembered: dict[tuple[str, str], tuple[Principal | None, float]] = {}

    def of(self, arrival: Arrival) -> Principal:
        """The principal of a message.

        Raises:
            Unauthorized: No or bad credentials, an unknown broker user, or a disabled account.
            DatabaseUnavailable: It cannot be found out now.
        """
        authorization = arrival.header("authorization")
        if authorization is not None:
            return self._by_token(authorization)
        broker_user = arrival.properties.get("user_id")
        if not isinstance(broker_user, str) or not broker_user:
            raise Unauthorized("The message needs a user_id, or an authorization header")
        email = self._emails.get(broker_user)
        principal = self._by_email(email) if email is not None else None
        if principal is None:
            raise Unauthorized("This broker user is nobody here: see WAYBILL_AMQP_PRINCIPALS")
        return principal

    def _by_token(self, authorization: object) -> Principal:
        scheme, _, token = (authorization if isinstance(authorization, str) else "").partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthorized("The authorization header must be a Bearer token")
        known = self._recall(("token", token))
        if known is not None:
            return known
        principal, expires_at = self._tokens.verify(token.strip())
        self._remember(("token", token), principal, min(REMEMBER_SECONDS, expires_at - time.time()))
        return principal

    def _by_email(self, email: str) -> Principal | None:
        key = ("email", email)
        if key in self._remembered and self._remembered[key][1] > time.monotonic():
            return self._remembered[key][0]
        try:
            with self._database.snapshot() as connection:
                user = self._users.by_email(connection, email)
        except exc.DBAPIError as error:
            raise DatabaseUnavailable("the users cannot be read: is the database migrated?") from error
        principal = None if user is None or user.is_disabled else user.principal
        self._remember(key, principal, REMEMBER_SECONDS)
        return principal

    def _recall(self, key: tuple[str, str]) -> Principal | None:
        principal, until = self._remembered.get(key, (None, 0.0))
        return principal if until > time.monotonic() else None

    def _remember(self, key: tuple[str, str], principal: Principal | None, seconds: float) -> None:
        if len(self._remembered) >= _MAX_REMEMBERED:
            self._remembered.clear()
        self._remembered[key] = (principal, time.monotonic() + seconds)
