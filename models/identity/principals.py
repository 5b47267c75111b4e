"""Who asks, and what they may do: roles and the one permission table. No tokens, no passwords."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID


class Role(StrEnum):
    """What a user is."""

    ADMIN = "admin"
    USER = "user"
    GUEST = "guest"


class Action(StrEnum):
    """The second half of a ``resource:action`` permission."""

    READ = "read"
    WRITE = "write"
    DELETE = "delete"


class Reach(StrEnum):
    """How far a permission goes: every instance, or the caller's own."""

    ALL = "all"
    OWN = "own"


Permissions = Mapping[Role, Mapping[Action, Reach]]

DEFAULT_PERMISSIONS: Permissions = {
    Role.ADMIN: {Action.READ: Reach.ALL, Action.WRITE: Reach.ALL, Action.DELETE: Reach.ALL},
    Role.USER: {Action.READ: Reach.OWN, Action.WRITE: Reach.OWN, Action.DELETE: Reach.OWN},
    Role.GUEST: {Action.READ: Reach.ALL},
}
"""What a resource grants unless its own declaration says otherwise."""


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated user, as jobs and routes know it."""

    id: UUID
    email: str
    role: Role

    @property
    def is_admin(self) -> bool:
        """Whether every job and every operator route is open to this user."""
        return self.role is Role.ADMIN


def reach_of(permissions: Permissions, role: Role, action: Action) -> Reach | None:
    """How far ``role`` may ``action``; None where it may not at all."""
    return permissions.get(role, {}).get(action)


def may(permissions: Permissions, principal: Principal, action: Action, owner_id: UUID | None) -> bool:
    """Whether ``principal`` may ``action`` an instance of ``owner_id`` (None: its own)."""
    reach = reach_of(permissions, principal.role, action)
    if reach is None:
        return False
    return reach is Reach.ALL or owner_id is None or owner_id == principal.id
