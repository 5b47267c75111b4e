"""Who may do what: the whole table."""

from itertools import product

import pytest

from models.identity.principals import DEFAULT_PERMISSIONS, Action, Principal, Reach, Role, may, reach_of
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


def test_role_that_a_resource_does_not_name_may_nothing() -> None:
    somebody = Principal(new_id(), "somebody@example.org", Role.USER)
    assert not may({Role.ADMIN: DEFAULT_PERMISSIONS[Role.ADMIN]}, somebody, Action.READ, somebody.id)


def test_only_admins_are_admins() -> None:
    assert [Principal(new_id(), "x", role).is_admin for role in Role] == [True, False, False]
