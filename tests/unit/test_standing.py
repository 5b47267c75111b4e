"""Standings: how long what is known is used, and believed while the database is away."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy.exc import ProgrammingError

from models.errors import DatabaseUnavailable, Unauthorized
from models.identity.principals import Principal, Role
from models.identity.standing import Standings
from models.identity.tokens import Verified
from models.ids import new_id

ADA = Principal(new_id(), "ada@example.org", Role.USER)
TOKEN = Verified(ADA, expires_at=10_000, issued_at=1_000)


class Users:
    """A database with one table of one row, that can go away."""

    def __init__(self) -> None:
        self.row: tuple[Any, ...] = (ADA.id, ADA.email, "user", False, 0.0)
        self.is_away = False
        self.queries = 0
        self.fault: Exception | None = None

    @contextmanager
    def snapshot(self) -> Iterator[Any]:
        self.queries += 1
        if self.is_away:
            raise DatabaseUnavailable("away")
        if self.fault is not None:
            raise self.fault
        yield self

    def execute(self, *_: object) -> Any:
        return self

    def all(self) -> list[tuple[Any, ...]]:
        return [self.row]


class Clock:
    time = 0.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def users() -> Users:
    return Users()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def standings(users: Users, clock: Clock) -> Standings:
    return Standings(users, now=clock)  # type: ignore[arg-type]


def test_standing_is_read_again_before_five_seconds_are_over(
    standings: Standings, users: Users, clock: Clock
) -> None:
    assert standings.of(ADA.id).admit(TOKEN).role is Role.USER
    users.row = (ADA.id, ADA.email, "guest", False, 0.0)
    clock.time = 1.9
    assert standings.recall(ADA.id)[1] is False
    clock.time = 3
    assert standings.recall(ADA.id)[1] is True
    assert standings.of(ADA.id).admit(TOKEN).role is Role.USER
    assert users.queries == 1
    clock.time = 4.5
    assert standings.of(ADA.id).admit(TOKEN).role is Role.GUEST


@pytest.mark.parametrize(
    "row",
    [
        (ADA.id, ADA.email, "user", True, 0.0),
        (ADA.id, ADA.email, "user", False, 1_000.5),
        (new_id(), "another@example.org", "admin", False, 0.0),
    ],
    ids=["disabled", "tokens withdrawn", "gone"],
)
def test_who_is_no_longer_good_is_refused(standings: Standings, users: Users, row: tuple[Any, ...]) -> None:
    users.row = row
    with pytest.raises(Unauthorized):
        standings.of(ADA.id).admit(TOKEN)


def test_known_user_is_believed_for_a_minute_without_the_database(
    standings: Standings, users: Users, clock: Clock
) -> None:
    standings.of(ADA.id)
    users.is_away = True
    for clock.time in (5, 30, 59):
        assert standings.of(ADA.id).admit(TOKEN) == ADA
    clock.time = 61
    with pytest.raises(DatabaseUnavailable):
        standings.of(ADA.id)
    with pytest.raises(DatabaseUnavailable):
        standings.of(new_id())
    users.is_away, clock.time = False, 63
    assert standings.of(ADA.id).admit(TOKEN) == ADA


def test_database_without_its_tables_is_one_that_is_away(standings: Standings, users: Users) -> None:
    users.fault = ProgrammingError("SELECT", {}, Exception("no such table"))
    with pytest.raises(DatabaseUnavailable):
        standings.of(ADA.id)


def test_database_that_is_away_is_asked_once_a_second(
    standings: Standings, users: Users, clock: Clock
) -> None:
    standings.of(ADA.id)
    users.is_away, clock.time = True, 10
    for _ in range(50):
        standings.of(ADA.id)
    assert users.queries == 2
