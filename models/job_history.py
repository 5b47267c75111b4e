"""The ledger's past: every transition of a job, in order, and how far the order is settled. Reads only."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from models.database import array
from models.job import Job, JobState
from models.job_rows import job_from
from models.ledger_statements import JOB_COLUMNS

_STEP = f"""
SELECT e.sequence, e.state, e.at, e.detail,
       CASE WHEN e.sequence = j.sequence THEN j.attempt ELSE (
           SELECT count(*) FROM job_events AS p
           WHERE p.job_id = e.job_id AND p.sequence <= e.sequence AND p.state = 'retrying'
             AND NOT EXISTS (SELECT FROM job_events AS d WHERE d.job_id = e.job_id AND d.state = 'dead'
                             AND d.sequence > p.sequence AND d.sequence < e.sequence)
       ) END,
       (SELECT 1 + count(*) FROM job_events AS d
        WHERE d.job_id = e.job_id AND d.sequence < e.sequence AND d.state = 'dead'),
       j.*
FROM (SELECT {JOB_COLUMNS} FROM jobs) AS j
"""

_SINCE = text(f"""
{_STEP}
JOIN unnest(CAST(:ids AS uuid[]), CAST(:seen AS bigint[])) AS w(id, seen)
  ON w.id = j.id AND j.sequence > w.seen
LEFT JOIN job_events AS e ON e.job_id = j.id AND e.sequence > w.seen
ORDER BY e.sequence
""")

_STANDING = text(f"""
{_STEP}
JOIN LATERAL (
    SELECT * FROM job_events AS l WHERE l.job_id = j.id AND l.sequence <= :until
    ORDER BY l.sequence DESC LIMIT 1
) AS e ON true
WHERE j.id = ANY(CAST(:ids AS uuid[]))
ORDER BY e.sequence
""")

_RANGE = f"{_STEP} JOIN job_events AS e ON e.job_id = j.id WHERE e.sequence > :after AND e.sequence <= :until"
_OF_PRINCIPALS = "j.principal_id = ANY(CAST(:principals AS uuid[]))"
_OF_JOBS = "e.job_id = ANY(CAST(:ids AS uuid[]))"

_LAST_DRAWN = text("SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM job_sequence")

_DRAWERS = text("""
SELECT virtualtransaction FROM pg_locks
WHERE locktype = 'relation' AND relation = CAST('job_sequence' AS regclass) AND mode = 'RowExclusiveLock'
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
""")

_UNSETTLED_KEPT = 64


@dataclass(frozen=True, slots=True)
class Interest:
    """Whose transitions are asked for: those of all jobs of some principals, and of some jobs."""

    principals: frozenset[UUID] = frozenset()
    jobs: frozenset[UUID] = frozenset()

    def includes(self, job: Job) -> bool:
        """Whether a transition of ``job`` is asked for."""
        return job.principal_id in self.principals or job.id in self.jobs


class JobHistory:
    """Reads transitions; each comes as the job stood after it. Holds nothing between calls."""

    def since(self, connection: Connection, seen: Mapping[UUID, int]) -> dict[UUID, list[Job]]:
        """What became of jobs after the sequence that was seen of each; those unchanged are left out.

        The last of each list is the job as it stands, whole. No other order is needed for one job:
        its row is locked while a sequence is drawn for it, so its transitions commit in their order.
        """
        if not seen:
            return {}
        rows = connection.execute(_SINCE, {"ids": array(seen), "seen": array(seen.values())}).all()
        found: dict[UUID, list[Job]] = {}
        standing: dict[UUID, Job] = {}
        for row in rows:
            job = standing[row[6]] = job_from(row[6:])
            steps = found.setdefault(job.id, [])
            if row[0] is not None and row[0] < job.sequence:
                steps.append(_as_it_stood(job, row))
        for identifier, job in standing.items():
            found[identifier].append(job)
        return found

    def standing(self, connection: Connection, job_ids: Iterable[UUID], until: int) -> list[Job]:
        """Each job as it stood at ``until``, in the order of sequences."""
        rows = connection.execute(_STANDING, {"ids": array(job_ids), "until": until}).all()
        return [_as_it_stood(job_from(row[6:]), row) for row in rows]

    def between(
        self, connection: Connection, interest: Interest, after: int, until: int, limit: int
    ) -> list[Job]:
        """Up to ``limit`` transitions in the order of their sequences, ``until`` included."""
        clauses = [_OF_PRINCIPALS] if interest.principals else []
        clauses += [_OF_JOBS] if interest.jobs else []
        if not clauses or after >= until:
            return []
        parameters: dict[str, Any] = {"after": after, "until": until, "limit": limit}
        if interest.principals:
            parameters["principals"] = array(interest.principals)
        if interest.jobs:
            parameters["ids"] = array(interest.jobs)
        statement = text(f"{_RANGE} AND ({' OR '.join(clauses)}) ORDER BY e.sequence LIMIT :limit")
        return [_as_it_stood(job_from(row[6:]), row) for row in connection.execute(statement, parameters)]


def _as_it_stood(job: Job, row: Sequence[Any]) -> Job:
    """The job after an earlier transition: what came later is taken away from it."""
    sequence, name, at, detail, attempt, generation = row[:6]
    if sequence == job.sequence:
        return job
    state = JobState(name)
    told: dict[str, Any] = detail if isinstance(detail, dict) else {}
    was_never_put_off = job.attempt == 0 and job.state is not JobState.RETRYING
    run_at = job.run_at if was_never_put_off and not state.is_done else None
    return replace(
        job,
        state=state,
        sequence=sequence,
        attempt=told.get("attempt", attempt + (state is JobState.DEAD)),
        generation=told.get("generation", generation),
        run_at=_moment(told["runAt"]) if told.get("runAt") is not None else run_at,
        finished_at=at if state.is_done else None,
        expires_at=_moment(told["expiresAt"]) if told.get("expiresAt") is not None else job.expires_at,
        version=None,
        result=None,
        error=told if "status" in told else told.get("error"),
        attempts=[one for one in job.attempts or () if _moment(one["at"]) <= at + _SAME_STATEMENT] or None,
    )


_SAME_STATEMENT = timedelta(milliseconds=1)


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


class Horizon:
    """How far the ledger's order is settled: what has a sequence up to there is visible, or never will be.

    A sequence is drawn before its transaction commits, so a higher one may be visible while a lower
    one is still to come; who remembers only the highest that was seen would skip it. But ``nextval``
    locks the sequence until its transaction ends, before it draws: so who may still bring something
    up to the last number drawn is written in ``pg_locks``. Once they are gone, all of it is there.
    (Comparing transaction ids would not do: a number is drawn before the transaction has an id.)

    Ask with the same object again and again, on a connection in autocommit: each statement must see
    what was committed when it began. Read the transitions afterwards.

    Attributes:
        is_behind: More was drawn than is settled.
    """

    def __init__(self) -> None:
        self.is_behind = False
        self._settled = 0
        self._unsettled: deque[tuple[int, frozenset[str]]] = deque(maxlen=_UNSETTLED_KEPT)

    def settled(self, connection: Connection) -> int:
        """The highest sequence up to which nothing is to come any more. Never goes back."""
        # In this order: who drew up to ``last`` and is not among the drawers read after it, has ended.
        last: int = connection.execute(_LAST_DRAWN).scalar_one()
        drawing = frozenset(row[0] for row in connection.execute(_DRAWERS))
        self._unsettled.append((last, drawing))
        remaining = [(upto, who & drawing) for upto, who in self._unsettled]
        self._settled = max([self._settled, *(upto for upto, who in remaining if not who)])
        self._unsettled = deque(
            ((upto, who) for upto, who in remaining if who and upto > self._settled), maxlen=_UNSETTLED_KEPT
        )
        self.is_behind = last > self._settled
        return self._settled
