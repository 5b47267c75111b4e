"""Lists of a resource of one's own over HTTP, in the order of every type that they may be sorted by."""

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import text

from models.identity.principals import Role
from tests.kit import shelves
from tests.kit.api import Answer, Api, running_api

MEMBERS = {info.alias or name: name for name, info in shelves.RESOURCE.read.model_fields.items()}
SORTS = [member for member, column in MEMBERS.items() if column in shelves.SORTED]


@pytest.fixture(scope="module")
def api(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    data_dir = Path(tmp_path_factory.mktemp("data"))
    with running_api(database_url, data_dir, resources=("tests.kit.shelves",)) as running:
        with running.container.database.transaction() as connection:
            shelves.fill(connection, running.users[Role.USER].id)
        yield running


def page(api: Api, sort: str, cursor: str | None = None) -> Answer:
    begins = f"&cursor={cursor}" if cursor else ""
    return api.request("GET", f"/api/v1/shelves?sort={sort}&limit=2{begins}")


def listed(api: Api, sort: str) -> list[UUID]:
    ids: list[UUID] = []
    cursor = None
    for _ in range(3):
        answer = page(api, sort, cursor)
        assert answer.status == 200, answer.body
        ids += [UUID(item["id"]) for item in answer.json["items"]]
        cursor = answer.json["nextCursor"]
    assert cursor is None
    return ids


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("member", SORTS)
def test_pages_by_every_type_hold_everything_once_in_the_databases_order(
    api: Api, member: str, *, descending: bool
) -> None:
    way = "DESC" if descending else "ASC"
    order = f'"{MEMBERS[member]}" {way}, id {way}'
    with api.container.database.snapshot() as connection:
        wanted = list(connection.execute(text(f"SELECT id FROM shelves ORDER BY {order}")).scalars())  # noqa: S608
    assert listed(api, f"-{member}" if descending else member) == wanted


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ("UPDATE shelves SET word = 'other' WHERE id = :id", 200),
        ("UPDATE shelves SET story = story || '!' WHERE id = :id", 400),
        ("DELETE FROM shelves WHERE id = :id", 400),
        ("UPDATE shelves SET story = NULL WHERE id = :id", 400),
    ],
)
def test_list_goes_on_after_a_long_text_as_long_as_it_is_there(api: Api, change: str, status: int) -> None:
    first = page(api, "story").json
    assert len(first["nextCursor"]) < 300
    with api.container.database.transaction() as connection:
        connection.execute(text("ALTER TABLE shelves ALTER story DROP NOT NULL"))
        kept = connection.execute(text("SELECT * FROM shelves")).mappings().all()
        connection.execute(text(change), {"id": first["items"][-1]["id"]})
    answer = page(api, "story", first["nextCursor"])
    with api.container.database.transaction() as connection:
        connection.execute(shelves.TABLE.delete())
        connection.execute(shelves.TABLE.insert(), [dict(row) for row in kept])
    assert answer.status == status
    if status == 400:
        assert "begin without the cursor" in answer.json["message"]


def test_list_by_a_column_that_is_null_after_all_is_refused_in_plain_words(api: Api) -> None:
    with api.container.database.transaction() as connection:
        kept = connection.execute(text("SELECT * FROM shelves")).mappings().all()
        connection.execute(text("ALTER TABLE shelves ALTER word DROP NOT NULL"))
        connection.execute(text("UPDATE shelves SET word = NULL"))
    answer = page(api, "word")
    with api.container.database.transaction() as connection:
        connection.execute(shelves.TABLE.delete())
        connection.execute(shelves.TABLE.insert(), [dict(row) for row in kept])
    assert answer.status == 400
    assert "sort by another" in answer.json["message"]
