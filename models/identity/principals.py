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
    MANAGE = "manage"
    """All of the above, for resources that are run as a whole by those who may."""


class Reach(StrEnum):
    """How far a permission goes: every instance, or the caller's own."""

    ALL = "all"
    OWN = "own"


Permissions = Mapping[Role, Mapping[Action, Reach]]

DEFAULT_PERMISSIONS: Permissions = {
    Role.ADMIN: {Action.MANAGE: Reach.ALL},
    Role.USER: {Action.READ: Reach.OWN, Action.WRITE: Reach.OWN},
    Role.GUEST: {Action.READ: Reach.ALL},
}
"""What a resource grants unless its own declaration says otherwise."""

ADMINS_ONLY: Permissions = {Role.ADMIN: {Action.MANAGE: Reach.ALL}}
"""What nobody else may even see."""


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
    """How far ``role`` may ``action``; None where it may not at all.

    Who may manage may do everything, and who may write may delete its own.
    """
    granted = permissions.get(role, {})
    reach = granted.get(action) or granted.get(Action.MANAGE)
    if reach is None and action is Action.DELETE and Action.WRITE in granted:
        return Reach.OWN
    return reach


def may_anything(permissions: Permissions, principal: Principal) -> bool:
    """Whether ``principal`` may do anything at all there; an admin knows of everything."""
    return principal.is_admin or bool(permissions.get(principal.role))


def permission_needed(permissions: Permissions, action: Action) -> Action:
    """What an ``action`` asks for: the action itself, or ``manage`` where nothing less is ever granted."""
    is_granted = any(action in granted for granted in permissions.values())
    implied = action is Action.DELETE and any(Action.WRITE in granted for granted in permissions.values())
    return action if is_granted or implied else Action.MANAGE


def may(permissions: Permissions, principal: Principal, action: Action, owner_id: UUID | None) -> bool:
    """Whether ``principal`` may ``action`` an instance of ``owner_id`` (None: nobody's)."""
    reach = reach_of(permissions, principal.role, action)
    return reach is Reach.ALL or (reach is Reach.OWN and owner_id == principal.id)
