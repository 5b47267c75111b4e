"""Circuit breakers per dependency: the pure state machine, and the board that keeps it in PostgreSQL.

::

              5 failures in a row                  probe_at has come
    closed ───────────────────────▶ open ────────────────────────────▶ half-open
      ▲                              ▲                                   │ one caller claims the probe
      │                              └──────── the probe fails ──────────┤ (open again, twice as long)
      └───────────────────────────────────────  it succeeds  ────────────┘

Closed is the absence of trouble: no row, or no ``probe_at``. Half-open is not stored; it is what "open"
becomes when the clock passes ``probe_at``. Then every caller may *ask*, and one gets the probe: claiming
moves ``probe_at`` on by ``PROBE_LEASE`` in a compare-and-set. A claimant that dies leaves a lease that runs
out.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import Connection, case, delete, func, literal, select, update
from sqlalchemy.dialects.postgresql import insert

from models.tables import breakers

THRESHOLD = 5
FIRST_REST = timedelta(seconds=30)
LONGEST_REST = timedelta(minutes=5)
PROBE_LEASE = timedelta(seconds=30)
"""Longer than one delivery may take, so a probe is never doubled while it is still under way."""

_MAX_DOUBLINGS = 4


class Phase(StrEnum):
    """What a breaker lets through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(frozen=True, slots=True)
class BreakerState:
    """A breaker as it is stored.

    Attributes:
        failures: In a row, as counted: while open only those of probes.
        opened_at: Since when it is open without a break; None while closed.
        probe_at: When one real delivery may probe; None while closed.
    """

    failures: int = 0
    opened_at: datetime | None = None
    probe_at: datetime | None = None


CLOSED = BreakerState()
_THIRD_PARTY = "^service:[a-z]"


@dataclass(frozen=True, slots=True)
class OpenBreaker:
    """A breaker that is not closed, as it stood at some moment.

    Attributes:
        dependency: Whose it is: ``host:port`` of a callback receiver, ``service:<name>`` of a third party.
        phase: Open, or half-open; a breaker stays half-open for as long as nothing is to be sent.
        failures: In a row, of probes once it was open.
        probe_at: When one real delivery may probe.
        rest: From that moment until then; zero once it may go.
    """

    dependency: str
    phase: Phase
    failures: int
    probe_at: datetime
    rest: timedelta

    @property
    def is_third_party(self) -> bool:
        """Whether it is a service's; a host called ``service`` has a port behind it."""
        return re.match(_THIRD_PARTY, self.dependency) is not None


def phase(state: BreakerState, now: datetime) -> Phase:
    """Closed: all pass. Open: none. Half-open: the one that claims the probe."""
    if state.probe_at is None:
        return Phase.CLOSED
    return Phase.HALF_OPEN if now >= state.probe_at else Phase.OPEN


def after_failure(state: BreakerState, now: datetime, *, is_probe: bool = False) -> BreakerState:
    """Count a failure; open at the threshold; after a failed probe rest twice as long.

    A failure that arrives while the breaker is open and is not the probe's was sent before it opened. It is
    old news: counted, ten deliveries in flight would stretch the first rest to the longest.
    """
    if state.probe_at is not None and not is_probe:
        return state
    failures = state.failures + 1
    if failures < THRESHOLD:
        return replace(state, failures=failures)
    return BreakerState(failures, state.opened_at or now, now + rest_after(failures))


def after_success() -> BreakerState:
    """Whoever succeeded, however late: the dependency works."""
    return CLOSED


def rest_after(failures: int) -> timedelta:
    """How long the breaker stays open after that many failures, at least ``THRESHOLD``."""
    return min(LONGEST_REST, FIRST_REST * (1 << min(failures - THRESHOLD, _MAX_DOUBLINGS)))


class BreakerBoard:
    """All breakers, over one connection. Never commits; each change is one statement.

    Args:
        connection: The caller's transaction. It should be short: the row of a failing dependency stays locked
            until it ends.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def record_failure(self, dependency: str, now: datetime, *, is_probe: bool = False) -> None:
        """``after_failure`` as one statement, so that failures counted at once are all counted.

        Args:
            dependency: ``host:port`` or ``service:<name>``, at most 255 characters.
            now: The database's time.
            is_probe: Whether the caller had claimed the probe.
        """
        first = after_failure(CLOSED, now)
        failures = breakers.c.failures + 1
        is_counted = breakers.c.probe_at.is_(None) | literal(is_probe)
        opens = is_counted & (failures >= THRESHOLD)
        rests = {count: rest_after(count) for count in range(THRESHOLD, THRESHOLD + _MAX_DOUBLINGS)}
        rest = case(rests, value=failures, else_=LONGEST_REST)
        self._connection.execute(
            insert(breakers)
            .values(
                dependency=dependency,
                failures=first.failures,
                opened_at=first.opened_at,
                probe_at=first.probe_at,
            )
            .on_conflict_do_update(
                index_elements=[breakers.c.dependency],
                set_={
                    "failures": case((is_counted, failures), else_=breakers.c.failures),
                    "opened_at": case(
                        (opens, func.coalesce(breakers.c.opened_at, now)), else_=breakers.c.opened_at
                    ),
                    "probe_at": case((opens, literal(now) + rest), else_=breakers.c.probe_at),
                },
            )
        )

    def record_success(self, dependency: str) -> None:
        """``after_success``: forget the row. Free where there is none, so it may follow every delivery."""
        self._connection.execute(delete(breakers).where(breakers.c.dependency == dependency))

    def claim_probe(self, dependency: str, now: datetime) -> bool:
        """Take the half-open probe. True for exactly one of all who ask; commit before sending.

        False also where the breaker is closed, or not yet due.
        """
        claimed = self._connection.execute(
            update(breakers)
            .where(breakers.c.dependency == dependency, breakers.c.probe_at <= now)
            .values(probe_at=now + PROBE_LEASE)
        )
        return claimed.rowcount == 1

    def states(self, dependencies: Collection[str] | None = None) -> dict[str, BreakerState]:
        """The states of those named, or of all that have failed lately. Who is not in it is closed."""
        query = select(breakers)
        if dependencies is not None:
            query = query.where(breakers.c.dependency.in_(dependencies))
        rows = self._connection.execute(query)
        return {row.dependency: BreakerState(row.failures, row.opened_at, row.probe_at) for row in rows}

    def not_closed(self, most: int) -> tuple[list[OpenBreaker], int]:
        """At most ``most`` of those that are not closed, and how many there are.

        Third parties come first, for users cannot add to them as they can to hosts; then those whose probe is
        furthest ahead, so that hosts to which nothing is sent any more, half-open for ever, come last.
        """
        is_service = breakers.c.dependency.regexp_match(_THIRD_PARTY)
        rows = self._connection.execute(
            select(breakers, func.clock_timestamp().label("now"), func.count().over().label("among"))
            .where(breakers.c.probe_at.is_not(None))
            .order_by(is_service.desc(), breakers.c.probe_at.desc(), breakers.c.dependency)
            .limit(most)
        ).all()
        found = []
        for row in rows:
            state = BreakerState(row.failures, row.opened_at, row.probe_at)
            rest = max(row.probe_at - row.now, timedelta(0))
            found.append(OpenBreaker(row.dependency, phase(state, row.now), row.failures, row.probe_at, rest))
        return found, rows[0].among if rows else 0
