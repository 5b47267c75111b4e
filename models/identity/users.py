"""Users: who may log in, with their password hashes. No tokens, no HTTP."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from sqlalchemy import Connection, text

from models.database import array
from models.errors import Conflict, NotFound
from models.identity.principals import Principal, Role
from models.ids import new_id

_hasher = PasswordHash((Argon2Hasher(),))
_ABSENT_USER_HASH = _hasher.hash("nobody has this password")


@dataclass(frozen=True, slots=True)
class User:
    """A row of ``users``, for the one who logs in."""

    principal: Principal
    password_hash: str
    is_disabled: bool


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
        """Change a password.

        Raises:
            NotFound: There is no such user.
        """
        changed = connection.execute(_SET_PASSWORD, {"email": email.lower(), "hash": password_hash})
        if changed.rowcount != 1:
            raise NotFound(f"There is no user {email}")

    def has_admin(self, connection: Connection) -> bool:
        """Whether anybody can administer the platform."""
        return bool(connection.execute(_HAS_ADMIN).scalar_one())


def hash_password(password: str) -> str:
    """Argon2id, about 150 ms of CPU: keep it off the event loop."""
    return _hasher.hash(password)


def password_matches(password: str, user: User | None) -> bool:
    """Whether the password is the user's; takes as long where there is no such user."""
    known = user.password_hash if user is not None else _ABSENT_USER_HASH
    return _hasher.verify(password, known) and user is not None and not user.is_disabled


def _user(row: Any) -> User:
    return User(Principal(row[0], row[1], Role(row[2])), row[3], row[4])


_ADD = text("""
INSERT INTO users (id, owner_id, email, password_hash, role) VALUES (:id, :id, :email, :hash, :role)
ON CONFLICT DO NOTHING RETURNING id, email, role
""")

_BY_EMAIL = text("SELECT id, email, role, password_hash, is_disabled FROM users WHERE email = :email")

_ALL = text("SELECT id, email, role, password_hash, is_disabled FROM users ORDER BY email")

_PRINCIPALS = text("""
SELECT id, email, role FROM users WHERE id = ANY(CAST(:ids AS uuid[])) AND NOT is_disabled
""")

_SET_PASSWORD = text("""
UPDATE users SET password_hash = :hash, version = version + 1, updated_at = now(),
    tokens_valid_from = clock_timestamp()
WHERE email = :email
""")

_HAS_ADMIN = text("SELECT EXISTS (SELECT FROM users WHERE role = 'admin' AND NOT is_disabled)")
