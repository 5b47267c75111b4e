"""Users as a resource: who may log in and as what, run by admins. Logging in itself is ``identity``'s.

A user that is deleted leaves what it owns behind: admins and guests still see it, and a user that is
made again with the same id owns it again. Its open jobs fail (403), its callback endpoints go.
"""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, Field

from models.identity.principals import ADMINS_ONLY, Role
from models.identity.users import hash_password
from models.resource_type import ResourceType
from models.schema import Schema
from models.service import ResourceService, Row
from models.tables import users

_EMAIL = "^[!-?A-~]{1,64}@[!-?A-~]{1,189}$"
MIN_PASSWORD, MAX_PASSWORD = 12, 256
MIN_DISTINCT = 5


def _strong(password: str) -> str:
    """Long and not of one letter; what it is made of is the user's (NIST SP 800-63B, section 3.1.1.2)."""
    if not password.isprintable():
        raise ValueError("must not hold control characters")
    if len(set(password)) < MIN_DISTINCT:
        raise ValueError(f"must have at least {MIN_DISTINCT} different characters")
    return password


Email = Annotated[
    str, Field(max_length=254, pattern=_EMAIL, examples=["ada@example.org"]), AfterValidator(str.lower)
]


def _password(default: Any) -> Any:
    return Field(
        default,
        alias="password",
        min_length=MIN_PASSWORD,
        max_length=MAX_PASSWORD,
        json_schema_extra={"writeOnly": True},
        examples=["correct horse battery staple"],
    )


class UserCreate(Schema):
    """Body of a POST."""

    email: Email
    role: Role = Role.USER
    password_hash: Annotated[str, AfterValidator(_strong)] = _password(...)


class UserUpdate(Schema):
    """Body of a PUT; what a PATCH must lead to. Without a password it stays as it is."""

    email: Email
    role: Role
    password_hash: Annotated[str, AfterValidator(_strong)] = _password("")


class UserRead(Schema):
    """What admins see."""

    id: UUID
    email: str
    role: Role
    version: int
    created_at: datetime
    updated_at: datetime


class UserService(ResourceService):
    """Keeps passwords as hashes, and ends what a user had before its password or role changed.

    That an admin is left is the database's own rule (see the migration): there every way to it passes.
    """

    def kept_of(self, column: str, secret: str) -> str:
        """Argon2id of the password."""
        return hash_password(secret)

    def derived(self, before: Row | None, after: Row, now: datetime) -> dict[str, Any]:
        """A user is its own; with another password or role, tokens from before are refused."""
        values: dict[str, Any] = {"owner_id": after["id"]}
        if before is None or any(before[name] != after[name] for name in ("password_hash", "role")):
            values["tokens_valid_from"] = now
        return values


RESOURCE = ResourceType(
    name="users",
    table=users,
    create=UserCreate,
    update=UserUpdate,
    read=UserRead,
    service=UserService,
    permissions=ADMINS_ONLY,
    searchable=("email",),
    sortable=("created_at", "email"),
    is_cached=False,  # log-ins and commands write here too; and who is who stays out of Redis
)
