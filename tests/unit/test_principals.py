"""Who may do what: the whole table."""

from itertools import product

import pytest

from models.identity.principals import (
    ADMINS_ONLY,
    DEFAULT_PERMISSIONS,
    Action,
    Permissions,
    Principal,
    Reach,
    Role,
    may,
    permission_needed,
    reach_of,
)
from models.ids import new_id

REACHES = {
    Role.ADMIN: dict.fromkeys(Action, Reach.ALL),
    Role.USER: {**dict.fromkeys(Action, Reach.OWN), Action.MANAGE: None},
    Role.GUEST: {**dict.fromkeys(Action), Action.READ: Reach.ALL},
}


@pytest.mark.parametrize(("role", "action"), list(product(Role, Action)))
def test_default_permissions(role: Role, action: Action) -> None:
    reach = REACHES[role][action]
    somebody = Principal(new_id(), "somebody@example.org", role)
    assert reach_of(DEFAULT_PERMISSIONS, role, action) is reach
    assert may(DEFAULT_PERMISSIONS, somebody, action, somebody.id) is (reach is not None)
    assert may(DEFAULT_PERMISSIONS, somebody, action, None) is (reach is Reach.ALL)
    assert may(DEFAULT_PERMISSIONS, somebody, action, new_id()) is (reach is Reach.ALL)


def test_who_may_write_may_delete_its_own_and_no_other() -> None:
    writers = {Role.USER: {Action.READ: Reach.ALL, Action.WRITE: Reach.ALL}}
    assert reach_of(writers, Role.USER, Action.DELETE) is Reach.OWN


@pytest.mark.parametrize(
    ("permissions", "action", "needed"),
    [
        (DEFAULT_PERMISSIONS, Action.READ, Action.READ),
        (DEFAULT_PERMISSIONS, Action.DELETE, Action.DELETE),
        (ADMINS_ONLY, Action.READ, Action.MANAGE),
        (ADMINS_ONLY, Action.DELETE, Action.MANAGE),
    ],
)
def test_permission_is_named_by_what_is_granted(
    permissions: Permissions, action: Action, needed: Action
) -> None:
    assert permission_needed(permissions, action) is needed


def test_role_that_a_resource_does_not_name_may_nothing() -> None:
    somebody = Principal(new_id(), "somebody@example.org", Role.USER)
    assert not may({Role.ADMIN: DEFAULT_PERMISSIONS[Role.ADMIN]}, somebody, Action.READ, somebody.id)


def test_only_admins_are_admins() -> None:
    assert [Principal(new_id(), "x", role).is_admin for role in Role] == [True, False, False]
