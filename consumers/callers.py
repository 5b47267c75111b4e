"""Callers: on whose behalf an upstream message speaks. No permissions; see ``desk.py``."""

import time
from collections.abc import Mapping
from uuid import UUID

from sqlalchemy import exc

from consumers.envelope import Arrival
from models.database import Database
from models.errors import DatabaseUnavailable, Unauthorized
from models.identity.principals import Principal
from models.identity.standing import Standings
from models.identity.tokens import Tokens, Verified
from models.identity.users import User, Users

REMEMBER_SECONDS = 4.0
"""How long the user of an email is remembered; so long a disabled one may go on."""

_MAX_REMEMBERED = 2_000


class Callers:
    """Tells who speaks: a bearer token in the message, else the broker's own word (``user_id``).

    Args:
        database: Where the users are.
        users: Finds them.
        tokens: Verifies access tokens.
        standings: Tell whether a token's user is still what it says.
        emails: Broker user -> email.
    """

    def __init__(
        self,
        database: Database,
        users: Users,
        tokens: Tokens,
        standings: Standings,
        emails: Mapping[str, str],
    ) -> None:
        self._database = database
        self._users = users
        self._tokens = tokens
        self._standings = standings
        self._emails = emails
        self._verified: dict[str, Verified] = {}
        self._generation = tokens.generation
        self._by_emails: dict[str, tuple[Principal | None, float]] = {}

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

    def sender(self, arrival: Arrival) -> UUID:
        """Whose message it is, be he let in any longer or not: to find what became of it, and no more.

        Raises:
            Unauthorized: It cannot be told.
            DatabaseUnavailable: It cannot be found out now.
        """
        authorization = arrival.header("authorization")
        if authorization is not None:
            return self._tokens.verify(_bearer(authorization), may_have_expired=True).principal.id
        email = self._emails.get(str(arrival.properties.get("user_id")))
        user = None if email is None else self._user(email)
        if user is None:
            raise Unauthorized("This broker user is nobody here")
        return user.principal.id

    def _by_token(self, authorization: object) -> Principal:
        verified = self._verify(_bearer(authorization))
        return self._standings.of(verified.principal.id).admit(verified)

    def _verify(self, token: str) -> Verified:
        """What a token says; its signature is checked once."""
        if self._generation != self._tokens.generation:
            self._generation = self._tokens.generation
            self._verified.clear()
        known = self._verified.get(token)
        if known is None or known.expires_at <= time.time():
            known = self._tokens.verify(token)
            if len(self._verified) >= _MAX_REMEMBERED:
                self._verified.clear()
            self._verified[token] = known
        return known

    def _by_email(self, email: str) -> Principal | None:
        known, until = self._by_emails.get(email, (None, 0.0))
        if until > time.monotonic():
            return known
        began = time.monotonic()
        user = self._user(email)
        principal = None if user is None or user.is_disabled else user.principal
        self._by_emails[email] = (principal, began + REMEMBER_SECONDS)  # as many as the setting names
        return principal

    def _user(self, email: str) -> User | None:
        try:
            with self._database.snapshot() as connection:
                return self._users.by_email(connection, email)
        except exc.DBAPIError as error:
            raise DatabaseUnavailable("the users cannot be read: is the database migrated?") from error


def _bearer(authorization: object) -> str:
    scheme, _, token = (authorization if isinstance(authorization, str) else "").partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthorized("The authorization header must be a Bearer token")
    return token.strip()
