"""Why a job stands where it stands: lane, queue, breakers, announcements, a guess. Changes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from models import breaker
from models.breaker import BreakerBoard
from models.deliveries.address_guard import check_url
from models.errors import Gone, Invalid
from models.job import Job, JobState
from models.resource_type import ResourceType

MOST_COUNTED = 100_000
"""Waiting jobs that are counted; beyond it the answer is "at least so many"."""

_RECENT = 1000
_RECENT_FOR = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Blocker:
    """The first job of a lane, that others wait for."""

    id: UUID
    state: JobState
    principal_id: UUID
    run_at: datetime | None
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the ledger knows of a job's waiting.

    Attributes:
        ahead_in_lane: Open jobs before it in its lane.
        ahead_in_queue: Open jobs of its priority that came before it, at most :data:`MOST_COUNTED`.
        announcements: Since it was last queued, by the sweep.
        announced_at: When, the latest ones.
        next_announcement: When the sweep would repeat it.
        crash_log: Attempts recorded beforehand: worker, time, signal.
        finished_per_second: How fast jobs came to an end lately; None where none did.
        events: State, time and number of each change.
        deliveries: How its outcome fares.
        dependencies: Host of each callback receiver that its outcome goes to, then each third party that its
            effects call or will call, with its breaker.
    """

    now: datetime
    ahead_in_lane: int
    blocker: Blocker | None
    ahead_in_queue: int
    announcements: int
    announced_at: Sequence[datetime]
    next_announcement: datetime | None
    crash_log: Sequence[dict[str, Any]]
    discarded_at: datetime | None
    finished_per_second: float | None
    events: Sequence[tuple[int, str, datetime]]
    deliveries: Sequence[tuple[str, str, int, datetime | None, str | None]]
    dependencies: dict[str, breaker.BreakerState]


def gather(connection: Connection, job: Job, declared: ResourceType | None = None) -> Facts:
    """Look everything up, in a handful of small queries.

    Args:
        connection: Reads.
        job: Which one.
        declared: Its resource; None where that is unknown here, or none of the reader's business.

    Raises:
        Gone: The job was pruned a moment ago.
    """
    row = connection.execute(_WAITING, {"id": job.id}).one_or_none()
    if row is None:
        raise Gone("The job is past its retention")
    is_open = job.state in (JobState.QUEUED, JobState.RETRYING)
    place = {"lane": row.lane, "position": row.position}
    ahead = connection.execute(_AHEAD_IN_LANE, place).scalar_one() if is_open else 0
    first = connection.execute(_FIRST_IN_LANE, place).one_or_none() if ahead else None
    queue = {"priority": job.priority, "position": row.position, "most": MOST_COUNTED}
    urls = connection.execute(_RECEIVERS, {"id": job.id}).scalars().all()
    hosts = sorted({host for url in urls if (host := _host_of(url)) is not None})
    dependencies = [*hosts, *(_services(connection, job, declared) if declared is not None else ())]
    known = BreakerBoard(connection).states(dependencies) if dependencies else {}
    return Facts(
        now=row.now,
        ahead_in_lane=ahead,
        blocker=Blocker(first[0], JobState(first[1]), *first[2:]) if first is not None else None,
        ahead_in_queue=connection.execute(_AHEAD_IN_QUEUE, queue).scalar_one() if is_open else 0,
        announcements=row.announcements,
        announced_at=row.announced_at or (),
        next_announcement=row.announce_at,
        crash_log=row.crash_log or (),
        discarded_at=row.discarded_at,
        finished_per_second=_rate(connection) if is_open else None,
        events=[(one[0], one[1], one[2]) for one in connection.execute(_EVENTS, {"id": job.id}).all()],
        deliveries=[
            (one[0], one[1], one[2], one[3], one[4])
            for one in connection.execute(_DELIVERIES, {"id": job.id}).all()
        ],
        dependencies={one: known.get(one, breaker.CLOSED) for one in dependencies},
    )


def estimate(job: Job, facts: Facts) -> datetime | None:
    """When the job will probably be final; None where it is, or where nothing speaks for any time."""
    if job.is_done:
        return None
    waits_until = [facts.now]
    if job.state in (JobState.SCHEDULED, JobState.RETRYING) and job.run_at is not None:
        waits_until.append(job.run_at)
    if facts.blocker is not None and facts.blocker.run_at is not None:
        waits_until.append(facts.blocker.run_at)
    ahead = facts.ahead_in_queue + 1
    if job.state is JobState.SCHEDULED or (facts.finished_per_second is None and len(waits_until) > 1):
        return max(waits_until)
    if facts.finished_per_second is None:
        return None
    return max(*waits_until, facts.now + timedelta(seconds=ceil(ahead / facts.finished_per_second)))


def summary(job: Job, facts: Facts, workers: int | None) -> str:
    """The one sentence that an operator reads first."""
    if facts.discarded_at is not None:
        return "It is dead, and was discarded."
    if job.state is JobState.DEAD:
        return f"It is dead ({_message_of(job)}): it rests until an admin redrives or discards it."
    if job.is_done:
        return f"It has {job.state}." if job.state is JobState.SUCCEEDED else f"It is {job.state}."
    if job.state is JobState.SCHEDULED:
        return "It waits for its time."
    if facts.blocker is not None:
        return (
            f"It waits behind {facts.ahead_in_lane} job(s) of its lane; the first is {facts.blocker.state}."
        )
    if job.state is JobState.RETRYING:
        return f"Attempt {job.attempt} failed ({_message_of(job)}); it is tried again at its time."
    if workers == 0:
        return "No worker consumes its queue."
    return "It is the next of its lane, and waits for a worker."


def _message_of(job: Job) -> str:
    last = job.attempts[-1]["reason"] if job.attempts else None
    return str(last or (job.error or {}).get("message", "no reason is known"))


def _host_of(url: str) -> str | None:
    try:
        return check_url(url, allow_private=True).dependency
    except Invalid:
        return None


def _services(connection: Connection, job: Job, declared: ResourceType) -> list[str]:
    """Whom its effects will call, while it is open; and whom those wait for that are not settled.

    A fallback is one of them once it is written: until then nothing is known to go there.
    """
    effects = {effect.name: effect.dependency for effect in declared.all_effects()}
    if not effects:
        return []
    waiting = connection.execute(_EFFECTS, {"id": job.id}).scalars().all()
    expected = [] if job.is_done else declared.effects
    return sorted(
        {effects[name] for name in waiting if name in effects}
        | {effect.dependency for effect in expected if job.operation in effect.operations}
    )


def _rate(connection: Connection) -> float | None:
    parameters = {"recent": _RECENT, "recent_for": _RECENT_FOR}
    count, seconds = connection.execute(_FINISHED_LATELY, parameters).one()
    return count / float(seconds) if count and seconds else None


_WAITING = text("""
SELECT lane, position, announcements, announced_at, announce_at, crash_log, discarded_at,
       clock_timestamp() AS now
FROM jobs WHERE id = :id
""")

_AHEAD_IN_LANE = text("""
SELECT count(*) FROM jobs
WHERE lane = :lane AND state IN ('queued', 'retrying') AND position < :position
""")

_FIRST_IN_LANE = text("""
SELECT id, state, principal_id, run_at, attempt FROM jobs
WHERE lane = :lane AND state IN ('queued', 'retrying') AND position < :position
ORDER BY position LIMIT 1
""")

_AHEAD_IN_QUEUE = text("""
SELECT count(*) FROM (
    SELECT position FROM jobs
    WHERE announce_at IS NOT NULL AND state IN ('queued', 'retrying') AND priority = :priority
    ORDER BY announce_at LIMIT :most
) AS waiting WHERE position < :position
""")

_FINISHED_LATELY = text("""
SELECT count(*) FILTER (WHERE state IN ('succeeded', 'failed', 'cancelled', 'expired', 'dead')),
       extract(epoch FROM clock_timestamp() - min(at))
FROM (SELECT state, at FROM job_events ORDER BY sequence DESC LIMIT :recent) AS latest
WHERE at > clock_timestamp() - :recent_for
""")

_EVENTS = text("SELECT sequence, state, at FROM job_events WHERE job_id = :id ORDER BY sequence LIMIT 200")

_DELIVERIES = text("""
SELECT kind, state, attempts, announce_at, error FROM deliveries
WHERE job_id = :id AND kind <> 'events' ORDER BY id LIMIT 50
""")

_EFFECTS = text("""
SELECT DISTINCT target FROM deliveries WHERE job_id = :id AND kind = 'effect' AND announce_at IS NOT NULL
""")

_RECEIVERS = text("""
SELECT DISTINCT e.url FROM jobs AS j JOIN callback_endpoints AS e
  ON NOT e.disabled AND (e.id = j.callback_endpoint_id OR (e.owner_id = j.principal_id AND e.events <> '{}'))
WHERE j.id = :id LIMIT 20
""")
