"""The backlog: what is open in the ledger, how old it is and how fast it drains. Read only."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, text

from models.job import Priority


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is open at a moment.

    Attributes:
        jobs: Jobs queued or retrying, by priority.
        ages: Seconds that the oldest has been queued, by priority; none behind a retry is looked at.
        finished: Jobs that ended since the reading before.
        mark: Where the next reading counts from.
        read_at: POSIX seconds, by the database's clock.
    """

    jobs: Mapping[Priority, int]
    ages: Mapping[Priority, float]
    finished: int
    mark: int
    read_at: float


def read_backlog(connection: Connection, mark: int | None) -> Backlog:
    """Look at every open job (half a million take most of a second), and at what ended since ``mark``.

    Args:
        connection: A snapshot will do.
        mark: That of the reading before; None at the first.
    """
    rows = [(Priority(row[0]), row[1], float(row[2])) for row in connection.execute(_OPEN)]
    if mark is None:
        mark = connection.execute(_LAST_SEQUENCE).scalar_one()
    finished, mark, read_at = connection.execute(_FINISHED, {"mark": mark}).one()
    return Backlog(
        jobs={priority: jobs for priority, jobs, _ in rows},
        ages={priority: age for priority, _, age in rows},
        finished=finished,
        mark=mark,
        read_at=float(read_at),
    )


# A job's position is the sequence of the event that queued it: its time is when waiting began, also
# for what was scheduled or redriven.
_OPEN = text("""
WITH held AS MATERIALIZED (
    SELECT DISTINCT lane FROM jobs WHERE announce_at IS NOT NULL AND state = 'retrying'
), open AS (
    SELECT j.priority, count(*) AS jobs,
           min(j.position) FILTER (WHERE j.state = 'queued' AND h.lane IS NULL) AS oldest
    FROM jobs AS j LEFT JOIN held AS h USING (lane)
    WHERE j.announce_at IS NOT NULL AND j.state <> 'scheduled'
    GROUP BY j.priority
)
SELECT o.priority, o.jobs, COALESCE(extract(epoch FROM clock_timestamp() - e.at), 0)
FROM open AS o LEFT JOIN job_events AS e ON e.sequence = o.oldest
""")

_LAST_SEQUENCE = text("SELECT last_value FROM job_sequence")

_FINISHED = text("""
SELECT count(*) FILTER (WHERE state IN ('succeeded', 'failed', 'cancelled', 'expired', 'dead')),
       COALESCE(max(sequence), :mark), extract(epoch FROM clock_timestamp())
FROM job_events WHERE sequence > :mark
""")
