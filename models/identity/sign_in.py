"""Signing in: begins, renews and ends sessions. The rules of logging in, in their order; no HTTP.

::

    log in:  locked? ─▶ password ─▶ second factor, if on ─▶ session
               429        401            401

Blocks: on the database, and for about 150 ms on Argon2. Keep it off the event loop.
"""

from dataclasses import dataclass

from sqlalchemy import Connection

from models.database import Database
from models.errors import Detail, Unauthorized
from models.failpoints import Step
from models.identity.login_guard import LoginGuard
from models.identity.refresh_families import Issued, RefreshFamilies
from models.identity.second_factors import SecondFactors
from models.identity.session_cache import SessionCache
from models.identity.tokens import Tokens
from models.identity.users import User, Users, hash_is_current, hash_password, password_matches


@dataclass(frozen=True, slots=True)
class Session:
    """What a client gets.

    Attributes:
        access_token: Good for ``expires_in`` seconds.
        refresh_token: Good once, for the next session.
    """

    access_token: str
    refresh_token: str
    expires_in: int


class SignIn:
    """Sessions from credentials.

    Args:
        database: Where all of this is kept.
        users: Finds users.
        families: Keeps refresh tokens.
        second_factors: Checks codes.
        guard: Makes those wait who failed too often.
        tokens: Issues access tokens.
        cache: Told of sessions.
    """

    def __init__(
        self,
        database: Database,
        *,
        users: Users,
        families: RefreshFamilies,
        second_factors: SecondFactors,
        guard: LoginGuard,
        tokens: Tokens,
        cache: SessionCache,
    ) -> None:
        self._database = database
        self._users = users
        self._families = families
        self._second_factors = second_factors
        self._guard = guard
        self._tokens = tokens
        self._cache = cache

    def log_in(self, email: str, password: str, otp: str | None, address: str) -> Session:
        """A session for an email and its password, and the second factor where one is on.

        An unknown email, a wrong password and a disabled user give the same answer after the same work.

        Raises:
            RateLimited: Too many have failed; nothing was checked.
            Unauthorized: Something is wrong; only after a right password it says that a code is needed.
        """
        with self._database.snapshot() as connection:
            self._guard.check(connection, email, address)
            user = self._users.by_email(connection, email)
        if not password_matches(password, user) or user is None:
            self._count_failure(email, address)
            raise Unauthorized("The email or the password is wrong")
        renewed_hash = None if hash_is_current(user.password_hash) else hash_password(password)
        with self._database.transaction(Step.LOG_IN) as connection:
            is_proved = self._is_proved(connection, user, otp)
            if is_proved:
                self._guard.succeeded(connection, email, address)
                if renewed_hash is not None:
                    self._users.renew_hash(connection, user, renewed_hash)
                begun = self._families.begin(connection, user)
        if not is_proved:
            self._count_failure(email, address)
            raise Unauthorized("The code is wrong, or was used before")
        return self._session(begun)

    def refresh(self, refresh_token: str) -> Session:
        """The next session of a family.

        Raises:
            Unauthorized: The token is unknown, ended, or was used before; in the last case the family
                ends, unless it was its predecessor a moment ago.
        """
        with self._database.transaction(Step.REFRESH) as connection:
            renewed = self._families.renew(connection, refresh_token)
        if renewed is None:
            raise Unauthorized("The refresh token was used before; its session has been ended: log in again")
        return self._session(renewed)

    def log_out(self, refresh_token: str) -> None:
        """End the session of a refresh token. One that is unknown or ended is ended."""
        with self._database.transaction(Step.LOG_OUT) as connection:
            family_id = self._families.revoke(connection, refresh_token)
        if family_id is not None:
            self._cache.drop(family_id)

    def _is_proved(self, connection: Connection, user: User, otp: str | None) -> bool:
        if not self._second_factors.is_on(connection, user.principal.id):
            return True
        if otp is None:
            raise Unauthorized(
                "A second factor is needed: send the code as otp", details=[Detail("otp", "is required")]
            )
        return self._second_factors.accepts(connection, user.principal.id, otp)

    def _count_failure(self, email: str, address: str) -> None:
        with self._database.transaction(Step.COUNT_FAILED_LOG_IN) as connection:
            self._guard.failed(connection, email, address)

    def _session(self, issued: Issued) -> Session:
        user = issued.user
        self._cache.put(issued.family_id, user.principal)
        # As old as the proof: a password that was changed since must end this token too.
        access_token = self._tokens.issue(user.principal, at=issued.at, not_before=user.tokens_valid_from)
        return Session(access_token, issued.token, int(self._tokens.lifetime.total_seconds()))
