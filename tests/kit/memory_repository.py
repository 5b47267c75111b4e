"""A repository in memory, for tests of what stands above one. Passes the real one's conformance suite."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from models.page_query import PageQuery
from models.repository import Head
from models.resource_type import ResourceType
from models.service import Row


class MemoryRepository:
    """Keeps rows in a dict; knows the table's columns and its unique ones. Ignores the connection.

    Args:
        resource: The declaration that names the table.
    """

    def __init__(self, resource: ResourceType) -> None:
        self._resource = resource
        self._columns = [str(column.key) for column in resource.table.columns]
        self._unique = [str(column.key) for column in resource.table.columns if column.unique]
        self._rows: dict[UUID, dict[str, Any]] = {}
        self._buried: dict[UUID, int] = {}

    def load_many(self, connection: Connection, ids: Sequence[UUID]) -> dict[UUID, Row]:
        """See ``Repository``."""
        return {one: dict(self._rows[one]) for one in ids if one in self._rows}

    def heads(self, connection: Connection, ids: Sequence[UUID]) -> dict[UUID, Head]:
        """See ``Repository``."""
        return {
            one: Head(
                self._rows[one]["owner_id"], self._rows[one]["version"], self._parent_of(self._rows[one])
            )
            for one in ids
            if one in self._rows
        }

    def insert_many(self, connection: Connection, rows: Sequence[Row]) -> set[UUID]:
        """See ``Repository``."""
        inserted = set()
        for row in rows:
            if row["id"] not in self._rows and not self._clashes(row):
                self._rows[row["id"]] = {name: row.get(name) for name in self._columns}
                inserted.add(row["id"])
        return inserted

    def update_many(self, connection: Connection, rows: Sequence[tuple[Row, int]]) -> set[UUID]:
        """See ``Repository``."""
        matched = set()
        for row, version in rows:
            present = self._rows.get(row["id"])
            if present is not None and present["version"] == version:
                names = ("id", "owner_id", "created_at", self._resource.parent_column)
                kept = {name: present[name] for name in names if name is not None}
                self._rows[row["id"]] = {name: row.get(name) for name in self._columns} | kept
                matched.add(row["id"])
        return matched

    def delete_many(self, connection: Connection, versions: Mapping[UUID, int]) -> set[UUID]:
        """See ``Repository``."""
        matched = {
            one
            for one, version in versions.items()
            if one in self._rows and self._rows[one]["version"] == version
        }
        for one in matched:
            self._buried[one] = self._rows.pop(one)["version"] + 1
        return matched

    def delete_parts(self, connection: Connection, parent_ids: Sequence[UUID]) -> dict[UUID, int]:
        """See ``Repository``."""
        gone = [one for one, row in self._rows.items() if self._parent_of(row) in parent_ids]
        for one in gone:
            self._buried[one] = self._rows.pop(one)["version"] + 1
        return {one: self._buried[one] for one in gone}

    def buried_versions(self, connection: Connection, ids: Sequence[UUID]) -> dict[UUID, int]:
        """See ``Repository``."""
        return {one: self._buried[one] for one in ids if one in self._buried}

    def page(self, connection: Connection, query: PageQuery) -> list[Row]:
        """See ``Repository``."""
        found = [row for row in self._rows.values() if self._is_wanted(row, query)]
        found.sort(key=lambda row: (row[query.sort], row["id"]), reverse=query.descending)
        if query.after is not None:
            beyond = query.after
            found = [
                row
                for row in found
                if (
                    (row[query.sort], row["id"]) < beyond
                    if query.descending
                    else (row[query.sort], row["id"]) > beyond
                )
            ]
        return [dict(row) for row in found[: query.limit]]

    def _parent_of(self, row: Row) -> UUID | None:
        column = self._resource.parent_column
        return None if column is None else row[column]

    def _is_wanted(self, row: Row, query: PageQuery) -> bool:
        searched = [row[name] or "" for name in self._resource.searchable if name in row]
        return (
            (query.owner_id is None or row["owner_id"] == query.owner_id)
            and (query.parent_id is None or self._parent_of(row) == query.parent_id)
            and (query.status is None or row["status"] == query.status)
            and (query.search is None or any(query.search.lower() in text.lower() for text in searched))
        )

    def _clashes(self, row: Row) -> bool:
        return any(other[name] == row[name] for name in self._unique for other in self._rows.values())
