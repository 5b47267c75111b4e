"""Looks a ledger over at rest, for anything that the promise excludes; in SQL. Breaks nothing itself."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psycopg
from psycopg.sql import SQL, Identifier, Literal

from tests.chaos.crates import INSURE

_FINAL = "('succeeded', 'failed', 'cancelled', 'expired', 'dead')"


@dataclass(frozen=True, slots=True)
class Rule:
    """Something that must not be found.

    Attributes:
        broken: What it means if it is.
        query: Finds the offenders, one row each.
    """

    broken: str
    query: str


@dataclass(frozen=True, slots=True)
class Transition:
    """A job's change of state, as the ledger keeps it.

    Attributes:
        owner: Id of the user whose job it is.
    """

    sequence: int
    job: str
    owner: str
    state: str


@dataclass(frozen=True, slots=True)
class Table:
    """Bytes of a table and its indexes.

    Attributes:
        held: As it was.
        needed: Once it was written anew.
    """

    held: int
    needed: int


RULES = (
    Rule("jobs without a final state", f"SELECT id, state FROM jobs WHERE state NOT IN {_FINAL}"),
    Rule("final jobs that are still to be announced", "SELECT id FROM jobs WHERE announce_at IS NOT NULL"),
    Rule(
        "jobs that did not end exactly once, in the state that the ledger names",
        # A redriven job has ended dead before, once a generation; a dead one that is put away is told again.
        f"""SELECT jobs.id, jobs.state, array_agg(event.state ORDER BY event.sequence) FROM jobs
        LEFT JOIN job_events event ON event.job_id = jobs.id AND event.state IN {_FINAL}
        AND NOT COALESCE(event.detail ? 'discarded', false)
        GROUP BY jobs.id HAVING array_agg(event.state::text ORDER BY event.sequence)
        <> array_fill('dead'::text, ARRAY[jobs.generation - 1]) || jobs.state::text""",
    ),
    Rule(
        "jobs that moved on after their end",
        f"""SELECT later.job_id FROM job_events later JOIN job_events ending
        ON ending.job_id = later.job_id AND ending.state IN {_FINAL} AND later.sequence > ending.sequence
        WHERE ending.state <> 'dead' OR NOT (COALESCE(later.detail ? 'discarded', false) OR EXISTS (
            SELECT FROM job_events redrive WHERE redrive.job_id = ending.job_id
            AND redrive.state = 'queued' AND redrive.detail ? 'generation'
            AND redrive.sequence > ending.sequence AND redrive.sequence <= later.sequence))""",
    ),
    Rule(
        "idempotency keys that are not one job's",
        """SELECT key, job_id FROM idempotency_keys LEFT JOIN jobs ON jobs.id = job_id WHERE jobs.id IS NULL
        UNION ALL SELECT min(key), job_id FROM idempotency_keys GROUP BY job_id HAVING count(*) <> 1""",
    ),
    Rule(
        "ends that were not handed to the outbox exactly once",
        f"""SELECT event.job_id, count(told) FROM job_events event
        LEFT JOIN (SELECT unnest(sequences) AS told FROM deliveries WHERE kind = 'events') AS outbox
        ON told = event.sequence WHERE event.state IN {_FINAL}
        GROUP BY event.sequence, event.job_id HAVING count(told) <> 1""",
    ),
    Rule(
        "deliveries that failed",  # a reply fails where its queue went with its connection
        f"""SELECT id, kind, error FROM deliveries WHERE state = 'failed' AND kind <> 'reply'
        AND target IS DISTINCT FROM '{INSURE}'""",
    ),
)
"""For every ledger."""

ENTITY_RULES = (
    Rule(
        "succeeded creates without their entity",
        """SELECT jobs.id FROM jobs LEFT JOIN entities ON entities.id = jobs.resource_id
        WHERE operation = 'create' AND resource = 'entities' AND state = 'succeeded'
        AND entities.id IS NULL""",
    ),
    Rule(
        "entities without exactly one create that succeeded",
        """SELECT entities.id, count(jobs.id) FROM entities LEFT JOIN jobs ON jobs.resource_id = entities.id
        AND operation = 'create' AND resource = 'entities' AND state = 'succeeded'
        GROUP BY entities.id HAVING count(jobs.id) <> 1""",
    ),
    Rule(
        "entities whose version is not the number of their effects",
        """SELECT entities.id, entities.version, count(jobs.id) FROM entities JOIN jobs
        ON jobs.resource_id = entities.id AND resource = 'entities' AND state = 'succeeded'
        AND operation <> 'read' GROUP BY entities.id HAVING count(jobs.id) <> entities.version""",
    ),
)
"""For one whose entities were never deleted."""


def violations(database_url: str, rules: Sequence[Rule] = RULES + ENTITY_RULES) -> Iterator[str]:
    """One line for each rule that is broken, with up to three offenders.

    Args:
        database_url: A platform's database, at rest.
        rules: To be looked after.
    """
    with connect(database_url) as connection:
        for rule in rules:
            found = connection.execute(rule.query).fetchall()
            if found:
                shown = ", ".join(str(row) for row in found[:3])
                yield f"{len(found)} {rule.broken}: {shown}"


def is_outbox_empty(database_url: str) -> bool:
    """Whether nothing is left to be told."""
    with connect(database_url) as connection:
        row = connection.execute("SELECT 1 FROM deliveries WHERE announce_at IS NOT NULL LIMIT 1").fetchone()
    return row is None


def open_work(database_url: str) -> list[str]:
    """What is still to be done or told, a line each, up to three of a kind."""
    queries = {
        "an open job": f"""SELECT id, state, attempt, announcements, announce_at - now()
            FROM jobs WHERE state NOT IN {_FINAL} LIMIT 3""",
        "a delivery in the outbox": """SELECT id, kind, state, attempts, announce_at - now(), error
            FROM deliveries WHERE announce_at IS NOT NULL LIMIT 3""",
    }
    with connect(database_url) as connection:
        return [
            f"{what}: {', '.join(map(str, row))}"
            for what, query in queries.items()
            for row in connection.execute(query).fetchall()
        ]


def hasten(database_url: str) -> None:
    """Turn the clock forward for deliveries that wait for their next attempt: half an hour, at the third."""
    with connect(database_url) as connection:
        connection.execute("DELETE FROM breakers")
        connection.execute(
            """UPDATE deliveries SET announce_at = now() WHERE announce_at > now()
            AND (state = 'retrying' OR announce_at > now() + interval '61 seconds')"""
        )


def transitions(database_url: str) -> list[Transition]:
    """Every change of state, in no order."""
    with connect(database_url) as connection:
        rows = connection.execute(
            """SELECT job_events.sequence, job_id::text, principal_id::text, job_events.state
            FROM job_events JOIN jobs ON jobs.id = job_id"""
        ).fetchall()
    return [Transition(int(str(n)), str(job), str(owner), str(state)) for n, job, owner, state in rows]


def count_jobs(database_url: str, state: str = "%") -> int:
    """Jobs in a state, or all."""
    with connect(database_url) as connection:
        row = connection.execute("SELECT count(*) FROM jobs WHERE state LIKE %s", (state,)).fetchone()
    return int(str(row[0])) if row else 0


def shipments(database_url: str) -> list[str]:
    """The jobs from which a call to the third party follows."""
    query = "SELECT id FROM jobs WHERE resource = 'crates' AND operation = 'create' AND state = 'succeeded'"
    with connect(database_url) as connection:
        return [str(row[0]) for row in connection.execute(query).fetchall()]


def tables(database_url: str) -> dict[str, Table]:
    """What each table takes. Writes them all anew, so nobody may be at work."""
    names = "SELECT relname FROM pg_stat_user_tables WHERE schemaname = 'waybill' ORDER BY relname"
    found = {}
    with connect(database_url) as connection:
        connection.autocommit = True
        for (name,) in connection.execute(names).fetchall():
            size = SQL("SELECT pg_total_relation_size({})").format(Literal(f"waybill.{name}"))
            held = connection.execute(size).fetchone()
            connection.execute(SQL("VACUUM (FULL) {}").format(Identifier("waybill", str(name))))
            needed = connection.execute(size).fetchone()
            if held is not None and needed is not None:
                found[str(name)] = Table(int(str(held[0])), int(str(needed[0])))
    return found


def upstream_keys(database_url: str) -> set[str]:
    """Ids of upstream's messages that became jobs."""
    with connect(database_url) as connection:
        rows = connection.execute("SELECT key FROM idempotency_keys WHERE door = 'amqp'").fetchall()
    return {str(row[0]) for row in rows}


def states(database_url: str) -> dict[str, int]:
    """Jobs by state."""
    with connect(database_url) as connection:
        rows = connection.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall()
    return {str(state): int(str(count)) for state, count in rows}


def connect(database_url: str) -> "psycopg.Connection[tuple[object, ...]]":
    """Connect with the tables in sight."""
    url = database_url.replace("postgresql+psycopg://", "postgresql://")
    return psycopg.connect(url, options="-c search_path=waybill,public", connect_timeout=10)
