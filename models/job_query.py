"""A page of jobs: what is asked, and its SQL. Every filter has an index that serves it; see ``tables.py``."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import TextClause, text

from models.ids import earliest_id
from models.job import JobState
from models.ledger_statements import JOB_COLUMNS

_CLOCKS_DIFFER_BY = timedelta(minutes=5)
"""An id carries the time of who took the job in, ``created_at`` the database's: never further apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobQuery:
    """A page of jobs, newest first.

    Attributes:
        before: The page begins after this job.
    """

    principal_id: UUID | None = None
    state: str | None = None
    resource: str | None = None
    resource_id: UUID | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    before: UUID | None = None
    limit: int = 20

    def statement(self) -> tuple[TextClause, dict[str, Any]]:
        """The SQL and its parameters.

        A range of ``created_at`` is given as a range of ids too, which the indexes are ordered by. The
        state stands in the text itself, so that every plan may use the index of the rare ones.
        """
        given: dict[str, tuple[str, Any]] = {
            "principal_id": ("principal_id = :principal_id", self.principal_id),
            "resource": ("resource = :resource", self.resource),
            "resource_id": ("resource_id = :resource_id", self.resource_id),
            "before": ("id < :before", self.before),
            "after": ("created_at > :after AND id >= :first", self.created_after),
            "until": ("created_at < :until AND id < :last", self.created_before),
        }
        asked = {name: clause for name, (clause, value) in given.items() if value is not None}
        parameters = {name: given[name][1] for name in asked} | {"limit": self.limit}
        clauses = [*asked.values()]
        if self.created_after is not None:
            parameters["first"] = earliest_id(self.created_after, offset=-_CLOCKS_DIFFER_BY)
        if self.created_before is not None:
            parameters["last"] = earliest_id(self.created_before, offset=_CLOCKS_DIFFER_BY)
        if self.state is not None:
            clauses.append(f"state = '{JobState(self.state)}'")
        if self.resource_id is not None and self.resource is None:
            clauses.append(f"resource IN ({_EVERY_RESOURCE})")
        where = " AND ".join(clauses) or "true"
        listed = f"SELECT {JOB_COLUMNS} FROM jobs WHERE {where}"  # noqa: S608 - of constants and an enum
        return text(f"{listed} ORDER BY id DESC LIMIT :limit"), parameters


_EVERY_RESOURCE = """
    WITH RECURSIVE names AS (
        SELECT min(resource) AS name FROM jobs
        UNION ALL
        SELECT (SELECT min(resource) FROM jobs WHERE resource > names.name) FROM names WHERE name IS NOT NULL
    ) SELECT name FROM names WHERE name IS NOT NULL
"""
"""One look into the index for each name, so that an instance is found without its resource's."""
