"""What lists of instances answer, on databases with and without trigrams, in two collations, under writes."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from models.ids import new_id
from models.page_query import FEW, PageQuery
from tests.kit.debian_postgres import DebianPostgresServer, debian_postgres_server
from tests.kit.platform import Platform, running_platform
from tests.kit.servers import fresh_database

ROWS = 3_000
NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
WORDS = ("crate", "Crate", "öre", "Ödland", "zoo", "50% off_", "\\", "a'b", "Åre", "ab", "İz")
_ICU = "CREATE DATABASE {} OWNER waybill TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'sv-SE'"


@pytest.fixture(scope="module")
def debian() -> Iterator[DebianPostgresServer]:
    with debian_postgres_server() as made:
        yield made


@pytest.fixture(scope="module")
def plain(database_url: str) -> Iterator[Platform]:
    """The wheel's PostgreSQL: no trigrams, the order of code points."""
    with running_platform(database_url) as platform:
        yield _filled(platform)


@pytest.fixture(scope="module")
def trigrams(debian: DebianPostgresServer) -> Iterator[Platform]:
    """Debian's: trigrams, the order of code points."""
    with fresh_database(debian) as url, running_platform(url) as platform:
        yield _filled(platform)


@pytest.fixture(scope="module")
def swedish(debian: DebianPostgresServer) -> Iterator[Platform]:
    """Debian's, in the order of a dictionary."""
    debian.run_as_superuser("postgres", _ICU.format("swedish"))
    with running_platform(debian.database_url("swedish")) as platform:
        yield _filled(platform)
    debian.drop_database("swedish")


def _row(dice: random.Random, owner_id: UUID, number: int) -> dict[str, Any]:
    return {
        "id": UUID(int=dice.getrandbits(128)),
        "name": f"{dice.choice(WORDS)} {dice.choice(WORDS)}",
        "description": None if number % 3 else f"{dice.choice(WORDS)} number {number}",
        "status": dice.choice(("DRAFT", "ACTIVE")),
        "metadata": None,
        "version": 1,
        "owner_id": owner_id,
        "created_at": NOW + timedelta(microseconds=dice.randrange(ROWS // 4)),
        "updated_at": NOW,
    }


def _filled(platform: Platform) -> Platform:
    """The same rows everywhere but for their owners, two of three Ada's; most sort values are shared."""
    dice = random.Random(7)
    rows = [_row(dice, platform.bob.id if n % 3 else platform.ada.id, n) for n in range(ROWS)]
    with platform.database.transaction() as connection:
        platform.registry["entities"].repository.insert_many(connection, rows)
    return platform


def paged(platform: Platform, query: PageQuery, *, writes: bool = False) -> list[dict[str, Any]]:
    """The whole list, page by page, while others write if they are to."""
    repository = platform.registry["entities"].repository
    dice = random.Random()
    seen: list[dict[str, Any]] = []
    after = None
    while True:
        with platform.database.snapshot() as connection:
            page = repository.page(connection, PageQuery(**_members(query) | {"after": after}))
        if not page:
            return seen
        assert page[0]["id"] not in (row["id"] for row in seen), "it goes in circles"
        seen += [dict(row) for row in page]
        after = (page[-1][query.sort], page[-1]["id"])
        if writes:
            with platform.database.transaction() as connection:
                extra = [_row(dice, new_id(), number) for number in range(5)]
                repository.insert_many(connection, extra)


def _members(query: PageQuery) -> dict[str, Any]:
    return {name: getattr(query, name) for name in PageQuery.__slots__}


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("sort", ["created_at", "name"])
@pytest.mark.parametrize("place", ["plain", "trigrams"])
def test_pages_are_pythons_own_sort_while_others_insert(
    request: pytest.FixtureRequest, place: str, sort: str, *, descending: bool
) -> None:
    platform: Platform = request.getfixturevalue(place)
    known = {row[0] for row in platform.rows("SELECT id FROM entities")}
    seen = paged(platform, PageQuery(limit=83, sort=sort, descending=descending), writes=True)
    keys = [(row[sort], row["id"]) for row in seen]
    assert keys == sorted(set(keys), reverse=descending)
    assert known <= {row["id"] for row in seen}


@pytest.mark.parametrize("descending", [False, True])
def test_pages_follow_the_databases_own_order_of_names(swedish: Platform, *, descending: bool) -> None:
    order = "name DESC, id DESC" if descending else "name, id"
    ids = [row[0] for row in swedish.rows(f"SELECT id FROM entities ORDER BY {order}")]  # noqa: S608
    seen = paged(swedish, PageQuery(limit=83, sort="name", descending=descending))
    assert [row["id"] for row in seen] == ids
    names = [row["name"] for row in seen]
    assert names != sorted(names, reverse=descending)  # it is not the order of code points


SEARCHES = ("crate", "CRATE", "number 12", "number 2991", "ÖDLAND", "absent", "ab", "a", "%", "_", "\\")
SEARCHES += ("a'b", "50% off_", "b 5", "", "off_ zoo")


@pytest.mark.parametrize("is_admin", [True, False], ids=["everybody's", "own"])
@pytest.mark.parametrize("search", SEARCHES)
def test_search_finds_the_same_with_and_without_trigrams(
    plain: Platform, trigrams: Platform, search: str, *, is_admin: bool
) -> None:
    found = []
    for platform in (plain, trigrams):
        owner = None if is_admin else platform.ada.id
        query = PageQuery(limit=97, sort="name", owner_id=owner, search=search)
        found.append([row for row in paged(platform, query) if row["owner_id"] in _known(platform)])
    rows = platform.rows("SELECT name, description, owner_id, id FROM entities ORDER BY name, id")
    expected = [
        row[3]
        for row in rows
        if row[2] in ([trigrams.ada.id] if not is_admin else _known(trigrams))
        and any(search.lower() in (one or "").lower() for one in row[:2])
    ]
    assert [row["id"] for row in found[0]] == [row["id"] for row in found[1]] == expected


def _known(platform: Platform) -> tuple[UUID, UUID]:
    """Without those who wrote meanwhile."""
    return platform.ada.id, platform.bob.id


def test_searches_above_find_few_and_many(plain: Platform) -> None:
    assert len(plain.rows("SELECT FROM entities WHERE lower(name) LIKE '%crate%'")) > FEW - 1
    assert len(plain.rows("SELECT FROM entities WHERE lower(name) LIKE '%dland zoo%'")) < FEW


@pytest.mark.parametrize("place", ["plain", "trigrams"])
@pytest.mark.parametrize("word", WORDS)
def test_what_is_stored_is_found_by_its_own_spelling(
    request: pytest.FixtureRequest, place: str, word: str
) -> None:
    platform: Platform = request.getfixturevalue(place)
    (row,) = platform.rows("SELECT count(*) FROM entities WHERE strpos(name, :name) > 0", name=f"{word} zoo")
    found = paged(platform, PageQuery(limit=100, sort="name", search=f"{word} zoo"))
    assert len(found) >= row[0] > 0
