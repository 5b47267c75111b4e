"""Refresh tokens: families that rotate, kept as digests. Knows no passwords and no access tokens.

One log-in begins a family; each use replaces its token by the next::

    log-in ──▶ t1 ──use──▶ t2 ──use──▶ t3 …
                │           └ the predecessor: refused within the grace, the family lives (a client
                │             that asked twice at once, or whose answer was lost)
                └ any other earlier token, or the predecessor later: stolen. The family is revoked.

A token is ``wbr_`` and base64url of the family's id (16 bytes) and a secret (32 bytes).
"""

import base64
import binascii
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import blake2b
from hmac import compare_digest
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from models.errors import Unauthorized
from models.identity.principals import Principal, Role
from models.identity.users import User
from models.ids import new_id

PREFIX = "wbr_"
GRACE = timedelta(seconds=10)
MOST_PER_USER = 20
"""A further log-in ends the family that rested longest."""

_ID_BYTES, _SECRET_BYTES = 16, 32
_LENGTH = len(PREFIX) + (_ID_BYTES + _SECRET_BYTES) * 4 // 3
_PRUNED_AT_ONCE = 20
_REFUSED = "The refresh token is not valid; log in again"


@dataclass(frozen=True, slots=True)
class Issued:
    """What a log-in or a good refresh token gave: whose it is, and its first or next token.

    Attributes:
        user: As it is now.
        token: Known only now.
        family_id: The same over every rotation.
        at: When, by the database's clock: what the user's tokens are withdrawn by is later.
    """

    user: User
    token: str
    family_id: UUID
    at: datetime


class RefreshFamilies:
    """Keeps families. Works inside the caller's transaction; the time is the database's.

    Args:
        idle: A family that was not used for so long ends.
        lifetime: It ends after so long, used or not.
    """

    def __init__(self, *, idle: timedelta, lifetime: timedelta) -> None:
        self._times = {"idle": idle, "lifetime": lifetime}

    def begin(self, connection: Connection, user: User) -> Issued:
        """Begin a family for a user who has just proved itself; its first token.

        Raises:
            Unauthorized: The user was disabled, demoted or given another password meanwhile.
        """
        family_id = new_id()
        token, digest = _new_token(family_id)
        parameters = {
            "id": family_id,
            "user_id": user.principal.id,
            "role": user.principal.role,
            "valid_from": user.tokens_valid_from,
            "digest": digest,
            **self._times,
        }
        began_at = connection.execute(_BEGIN, parameters).scalar_one_or_none()
        if began_at is None:
            raise Unauthorized("The account was changed meanwhile; log in again")
        connection.execute(_BOUND, {"user_id": user.principal.id, "most": MOST_PER_USER})
        connection.execute(PRUNE, {"most": _PRUNED_AT_ONCE})
        return Issued(user, token, family_id, began_at)

    def renew(self, connection: Connection, token: str) -> Issued | None:
        """The successor of ``token``; None where its family is revoked by this very call.

        None rather than an error, so that the caller commits the revocation before it refuses.

        Raises:
            Unauthorized: Unknown, ended, or just used by somebody else.
        """
        family_id, digest = _parsed(token)
        row = connection.execute(_LOCKED, {"id": family_id, "grace": GRACE}).one_or_none()
        if row is None or not row.is_live:
            raise Unauthorized(_REFUSED)
        if compare_digest(row.current_digest, digest):
            successor, successor_digest = _new_token(family_id)
            parameters = {"id": family_id, "digest": successor_digest, "idle": self._times["idle"]}
            rotated_at = connection.execute(_ROTATE, parameters).scalar_one()
            return Issued(_user(row), successor, family_id, rotated_at)
        if row.is_in_grace and compare_digest(row.previous_digest, digest):
            raise Unauthorized("The refresh token was used a moment ago; use the one that came back")
        connection.execute(_REVOKE, {"id": family_id})
        return None

    def revoke(self, connection: Connection, token: str) -> UUID | None:
        """End the family of a token, whichever of its tokens it is; its id. Unknown tokens are nobody's."""
        try:
            family_id, _ = _parsed(token)
        except Unauthorized:
            return None
        connection.execute(_REVOKE, {"id": family_id})
        return family_id


def _new_token(family_id: UUID) -> tuple[str, bytes]:
    raw = family_id.bytes + secrets.token_bytes(_SECRET_BYTES)
    return PREFIX + base64.urlsafe_b64encode(raw).decode(), _digest(raw)


def _parsed(token: str) -> tuple[UUID, bytes]:
    """A token's family and digest.

    Raises:
        Unauthorized: It is none of ours.
    """
    try:
        if not token.startswith(PREFIX) or len(token) != _LENGTH:
            raise ValueError("another form")
        raw = base64.b64decode(token.removeprefix(PREFIX), altchars=b"-_", validate=True)
        return UUID(bytes=raw[:_ID_BYTES]), _digest(raw)
    except (ValueError, binascii.Error) as error:
        raise Unauthorized(_REFUSED) from error


def _digest(raw: bytes) -> bytes:
    """Without salt or stretching: what is hashed has 256 random bits."""
    return blake2b(raw, digest_size=32).digest()


def _user(row: Any) -> User:
    principal = Principal(row.user_id, row.email, Role(row.role))
    return User(principal, row.password_hash, row.is_disabled, row.tokens_valid_from)


# The row of the user is locked against a change of password or role that has not committed yet.
_BEGIN = text("""
INSERT INTO refresh_families (id, user_id, role, current_digest, created_at, expires_at, idle_at)
SELECT :id, id, role, :digest, clock_timestamp(), now() + :lifetime, now() + least(:idle, :lifetime)
FROM users
WHERE id = :user_id AND role = :role AND NOT is_disabled AND tokens_valid_from = :valid_from
FOR SHARE
RETURNING created_at
""")

_BOUND = text("""
UPDATE refresh_families SET revoked_at = now(), idle_at = now() WHERE id IN (
    SELECT id FROM refresh_families WHERE user_id = :user_id AND revoked_at IS NULL
    ORDER BY coalesce(rotated_at, created_at) DESC OFFSET :most)
""")

_IS_STALE = "idle_at < now() - interval '1 day'"

PRUNE = text(f"""
DELETE FROM refresh_families WHERE id IN (
    SELECT id FROM refresh_families WHERE {_IS_STALE} ORDER BY idle_at LIMIT :most FOR UPDATE SKIP LOCKED)
""")
"""Forgets up to ``most`` families that ended."""

COUNT_STALE = text(f"SELECT count(*) FROM refresh_families WHERE {_IS_STALE}")

# As in _BEGIN, and the user first, as whoever changes it does: the other way round they would deadlock.
_LOCKED = text("""
SELECT family.current_digest, family.previous_digest,
    users.id AS user_id, users.email, users.role, users.password_hash, users.is_disabled,
    users.tokens_valid_from,
    family.revoked_at IS NULL AND clock_timestamp() < least(family.expires_at, family.idle_at)
        AND NOT users.is_disabled AND users.role = family.role
        AND users.tokens_valid_from <= family.created_at AS is_live,
    coalesce(clock_timestamp() < family.rotated_at + :grace, false) AS is_in_grace
FROM refresh_families AS family JOIN users ON users.id = family.user_id
WHERE family.id = :id
FOR SHARE OF users FOR UPDATE OF family
""")

_ROTATE = text("""
UPDATE refresh_families SET previous_digest = current_digest, current_digest = :digest,
    rotated_at = clock_timestamp(), idle_at = least(expires_at, clock_timestamp() + :idle)
WHERE id = :id
RETURNING rotated_at
""")

_REVOKE = text("""
UPDATE refresh_families SET revoked_at = now(), idle_at = now() WHERE id = :id AND revoked_at IS NULL
""")
