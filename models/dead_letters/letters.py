"""Dead letters: the dead jobs that rest, listed, grouped by their error, picked up. Changes none."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from models import ledger_statements as sql
from models.database import array
from models.job import Job, JobState
from models.job_rows import job_from


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterQuery:
    """Which dead letters.

    Attributes:
        group: Those with this error, as :meth:`DeadLetters.groups` names it.
        discarded: Those that an operator put away, in place of those that wait for one.
    """

    resource: str | None = None
    resource_id: UUID | None = None
    operation: str | None = None
    group: str | None = None
    died_after: datetime | None = None
    died_before: datetime | None = None
    discarded: bool = False


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead job as it is listed."""

    job: Job
    group: str
    discarded_at: datetime | None

    def document(self) -> dict[str, Any]:
        """The wire document: the job, the group of its error, and when it was put away."""
        return {**self.job.document(), "group": self.group, "discardedAt": self.discarded_at}


@dataclass(frozen=True, slots=True)
class LetterGroup:
    """Dead letters with the same error."""

    group: str
    resource: str
    operation: str
    error: str | None
    message: str | None
    reason: str | None
    count: int
    oldest: datetime
    newest: datetime
    latest_id: UUID

    def document(self) -> dict[str, Any]:
        """The wire document."""
        return {
            "group": self.group,
            "resource": self.resource,
            "operation": self.operation,
            "error": self.error,
            "message": self.message,
            "reason": self.reason,
            "count": self.count,
            "oldest": self.oldest,
            "newest": self.newest,
            "latestJobId": self.latest_id,
        }


@dataclass(frozen=True, slots=True)
class OpenedLetter:
    """A job that was picked up to be redriven, with what it takes to judge it; its row is locked.

    Attributes:
        payload: JSON text.
        kills_workers: Its worker died at each attempt: nobody else may try it out.
        has_expired: Its ``expiresAt`` has passed.
    """

    job: Job
    lane: int
    payload: str | None
    if_match: int | None
    kills_workers: bool
    discarded_at: datetime | None
    has_expired: bool

    @property
    def is_dead(self) -> bool:
        """Whether it rests at all."""
        return self.job.state is JobState.DEAD


class DeadLetters:
    """Reads dead letters. Works inside the caller's transaction."""

    def page(
        self,
        connection: Connection,
        query: DeadLetterQuery,
        *,
        before: tuple[datetime, UUID] | None = None,
        limit: int = 20,
    ) -> list[DeadLetter]:
        """One page, latest death first."""
        clauses, parameters = _conditions(query)
        if before is not None:
            clauses.append("(finished_at, id) < (:before_time, :before_id)")
            parameters |= {"before_time": before[0], "before_id": before[1]}
        statement = text(
            f"SELECT {sql.JOB_COLUMNS}, {_GROUP}, discarded_at FROM jobs WHERE {' AND '.join(clauses)} "
            "ORDER BY finished_at DESC, id DESC LIMIT :limit"
        )
        rows = connection.execute(statement, {**parameters, "limit": limit}).all()
        return [DeadLetter(job_from(row), row[-2], row[-1]) for row in rows]

    def groups(
        self,
        connection: Connection,
        query: DeadLetterQuery,
        *,
        after: tuple[int, str] | None = None,
        limit: int = 20,
    ) -> list[LetterGroup]:
        """Dead letters by resource, operation and error (ids and numbers in it do not count), most first."""
        clauses, parameters = _conditions(query)
        having = "true"
        if after is not None:
            having = f"count(*) < :after_count OR (count(*) = :after_count AND {_GROUP} > :after_group)"
            parameters |= {"after_count": after[0], "after_group": after[1]}
        statement = text(
            f"SELECT {_GROUP}, min(resource), min(operation), min(error->>'error'), min(error->>'message'), "
            "min(attempts->-1->>'reason'), count(*), min(finished_at), max(finished_at), "
            f"(array_agg(id ORDER BY finished_at DESC))[1] FROM jobs WHERE {' AND '.join(clauses)} "
            f"GROUP BY {_GROUP} HAVING {having} ORDER BY count(*) DESC, {_GROUP} LIMIT :limit"
        )
        rows = connection.execute(statement, {**parameters, "limit": limit}).all()
        return [LetterGroup(*row) for row in rows]

    def oldest(self, connection: Connection, query: DeadLetterQuery, limit: int) -> tuple[list[UUID], int]:
        """Those that would be redriven first, in the order of their lanes, and how many there are in all."""
        clauses, parameters = _conditions(query)
        statement = text(
            "SELECT id, count(*) OVER () FROM jobs "
            f"WHERE {' AND '.join(clauses)} ORDER BY position LIMIT :limit"
        )
        rows = connection.execute(statement, {**parameters, "limit": limit}).all()
        return [row[0] for row in rows], rows[0][1] if rows else 0

    def pick_up(self, connection: Connection, job_ids: Sequence[UUID]) -> dict[UUID, OpenedLetter]:
        """The jobs among ``job_ids`` that exist, dead or not, locked until the transaction ends."""
        rows = connection.execute(_PICK_UP, {"ids": array(job_ids)}).all()
        return {row[0]: OpenedLetter(job_from(row), *row[-6:]) for row in rows}


_GROUP = """left(md5(concat_ws('|', resource, operation, error->>'error', regexp_replace(
    concat_ws('|', error->>'message', attempts->-1->>'reason'),
    '[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[0-9]+', '#', 'g'))), 16)"""

_PICK_UP = text(f"""
SELECT {sql.JOB_COLUMNS}, lane, CAST(payload AS text), if_match, COALESCE(error ? 'evidence', false),
       discarded_at, COALESCE(expires_at <= clock_timestamp(), false)
FROM jobs WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id FOR NO KEY UPDATE
""")


def _conditions(query: DeadLetterQuery) -> tuple[list[str], dict[str, Any]]:
    clauses = ["state = 'dead'", f"discarded_at IS {'NOT ' if query.discarded else ''}NULL"]
    parameters: dict[str, Any] = {}
    for name, clause in (
        ("resource", "resource = :resource"),
        ("resource_id", "resource_id = :resource_id"),
        ("operation", "operation = :operation"),
        ("group", f"{_GROUP} = :group"),
        ("died_after", "finished_at > :died_after"),
        ("died_before", "finished_at < :died_before"),
    ):
        value = getattr(query, name)
        if value is not None:
            clauses.append(clause)
            parameters[name] = value
    return clauses, parameters
