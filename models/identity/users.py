"""Users: who may log in, with their password hashes. No tokens, no HTTP."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from pwdlib import PasswordHash
from pwdlib.exceptions import UnknownHashError
from pwdlib.hashers.argon2 import Argon2Hasher
from sqlalchemy import Connection, TextClause, text

from models.database import array
from models.errors import Conflict, NotFound
from models.identity.principals import Principal, Role
from models.ids import new_id

_argon2 = Argon2Hasher()
_hasher = PasswordHash((_argon2,))
_ABSENT_USER_HASH = _hasher.hash("nobody has this password")


@dataclass(frozen=True, slots=True)
class User:
    """A row of ``users``, for the one who logs in."""

    principal: Principal
    password_hash: str
    is_disabled: bool
    tokens_valid_from: datetime


class Users:
    """Keeps users. Works inside the caller's transaction."""

    def add(self, connection: Connection, email: str, password_hash: str, role: Role) -> Principal:
        """Add a user; ``email`` is kept in lower case.

        Raises:
            Conflict: The email is taken.
        """
        parameters = {"id": new_id(), "email": email.lower(), "hash": password_hash, "role": role}
        added = connection.execute(_ADD, parameters).one_or_none()
        if added is None:
            raise Conflict(f"There is a user {email} already")
        return Principal(added[0], added[1], Role(added[2]))

    def by_email(self, connection: Connection, email: str) -> User | None:
        """The user with this email."""
        if "\0" in email:  # PostgreSQL keeps no such text, nor looks for it
            return None
        row = connection.execute(_BY_EMAIL, {"email": email.lower()}).one_or_none()
        return None if row is None else _user(row)

    def all(self, connection: Connection) -> list[User]:
        """Everybody, by email."""
        return [_user(row) for row in connection.execute(_ALL).all()]

    def principals(self, connection: Connection, ids: list[UUID]) -> dict[UUID, Principal]:
        """Those of ``ids`` who exist and are not disabled, with the role that they have now."""
        rows = connection.execute(_PRINCIPALS, {"ids": array(ids)})
        return {row[0]: Principal(row[0], row[1], Role(row[2])) for row in rows}

    def set_password(self, connection: Connection, email: str, password_hash: str) -> None:
        """Change a password; whoever is logged in with the old one is logged out.

        Raises:
            NotFound: There is no such user.
        """
        self._change(connection, _SET_PASSWORD, email, hash=password_hash)

    def set_role(self, connection: Connection, email: str, role: Role) -> None:
        """Change a role. Sessions end; access tokens go on, with the new role.

        Raises:
            NotFound: There is no such user.
        """
        self._change(connection, _SET_ROLE, email, role=role)

    def set_disabled(self, connection: Connection, email: str, *, is_disabled: bool) -> None:
        """Shut a user out or let it in again; tokens from before stay refused.

        Raises:
            NotFound: There is no such user.
        """
        self._change(connection, _SET_DISABLED, email, is_disabled=is_disabled)

    def renew_hash(self, connection: Connection, user: User, password_hash: str) -> None:
        """Keep the same password under newer parameters, unless it was changed meanwhile."""
        parameters = {"id": user.principal.id, "old": user.password_hash, "hash": password_hash}
        connection.execute(_RENEW_HASH, parameters)

    def end_sessions(self, connection: Connection, user_id: UUID) -> None:
        """Revoke every refresh token of a user; to be called after its row was changed."""
        connection.execute(_END_SESSIONS, {"id": user_id})

    def has_admin(self, connection: Connection) -> bool:
        """Whether anybody can administer the platform."""
        return bool(connection.execute(_HAS_ADMIN).scalar_one())

    def _change(self, connection: Connection, statement: TextClause, email: str, **values: Any) -> None:
        changed = connection.execute(statement, {"email": email.lower(), **values}).one_or_none()
        if changed is None:
            raise NotFound(f"There is no user {email}")
        self.end_sessions(connection, changed[0])


def hash_password(password: str) -> str:
    """Argon2id, about 150 ms of CPU: keep it off the event loop."""
    return _hasher.hash(password)


def password_matches(password: str, user: User | None) -> bool:
    """Whether the password is the user's; takes as long where there is no such user."""
    known = user.password_hash if user is not None else _ABSENT_USER_HASH
    try:
        is_right = _hasher.verify(password, known)
    except UnknownHashError:  # a user that was made without a password
        is_right = _hasher.verify(password, _ABSENT_USER_HASH) and False
    return is_right and user is not None and not user.is_disabled


def hash_is_current(password_hash: str) -> bool:
    """Whether it was made with the parameters of today."""
    return not _argon2.check_needs_rehash(password_hash)


def _user(row: Any) -> User:
    return User(Principal(row[0], row[1], Role(row[2])), row[3], row[4], row[5])


_ADD = text("""
INSERT INTO users (id, owner_id, email, password_hash, role) VALUES (:id, :id, :email, :hash, :role)
ON CONFLICT DO NOTHING RETURNING id, email, role
""")

_COLUMNS = "id, email, role, password_hash, is_disabled, tokens_valid_from"

_BY_EMAIL = text(f"SELECT {_COLUMNS} FROM users WHERE email = :email")

_ALL = text(f"SELECT {_COLUMNS} FROM users ORDER BY email")

_PRINCIPALS = text("""
SELECT id, email, role FROM users WHERE id = ANY(CAST(:ids AS uuid[])) AND NOT is_disabled
""")

_CHANGED = "version = version + 1, updated_at = now() WHERE email = :email RETURNING id"
_FROM_NOW_ON = "tokens_valid_from = clock_timestamp()"

_SET_PASSWORD = text(f"UPDATE users SET password_hash = :hash, {_FROM_NOW_ON}, {_CHANGED}")

_SET_ROLE = text(f"UPDATE users SET role = :role, {_CHANGED}")

_SET_DISABLED = text(f"UPDATE users SET is_disabled = :is_disabled, {_FROM_NOW_ON}, {_CHANGED}")

_RENEW_HASH = text("UPDATE users SET password_hash = :hash WHERE id = :id AND password_hash = :old")

_END_SESSIONS = text("""
UPDATE refresh_families SET revoked_at = now(), idle_at = now() WHERE user_id = :id AND revoked_at IS NULL
""")

_HAS_ADMIN = text("SELECT EXISTS (SELECT FROM users WHERE role = 'admin' AND NOT is_disabled)")
