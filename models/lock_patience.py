"""Trying again what waits for a lock: briefly each time, and knowing who was in its way. Knows no migration.

A statement that waits for an ACCESS EXCLUSIVE lock has everybody queue up behind it who comes later, readers
too. So nothing here waits for longer than the platform's own statements do, which give up after two seconds:
it steps aside, lets those through, and comes again.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import psycopg
from sqlalchemy import Connection, Engine, exc, text

from models.database import sqlstate
from models.errors import Contention

_log = logging.getLogger("waybill.migrate")
_LOCK_NOT_AVAILABLE, _DEADLOCK = "55P03", "40P01"
_LOOK_SECONDS = 0.1
_WORDS_SHOWN = 120


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for locks, and how often.

    Attributes:
        lock_timeout: No statement waits longer; below the two seconds that the platform's own wait.
        attempts: Then it is given up.
        base: The first rest's upper bound; it doubles with each attempt.
        cap: No rest is longer.
    """

    lock_timeout: timedelta = timedelta(seconds=1)
    attempts: int = 12
    base: timedelta = timedelta(seconds=1)
    cap: timedelta = timedelta(seconds=15)

    def rest_seconds(self, attempt: int) -> float:
        """How long to let the others through after attempt number ``attempt`` (the first is 1)."""
        bound = min(self.base * 2 ** (attempt - 1), self.cap).total_seconds()
        return float(bound * random.uniform(0.5, 1))  # noqa: S311 - no secret

    def keep(
        self, engine: Engine, connection: Connection, what: str, work: Callable[[], None], remedy: str
    ) -> None:
        """Do ``work`` on ``connection`` and commit; where a lock cannot be had, again from the beginning.

        Args:
            engine: Where to look, beside, who is in the way.
            connection: Not in a transaction; its session waits no longer than ``lock_timeout``.
            what: Names the work in the log and in the error.
            work: May commit in between; what it committed it must find done the next time.
            remedy: What to do where it is given up.

        Raises:
            Contention: It could not be done; tells who was in the way, and what to do.
        """
        pid = connection.connection.driver_connection.info.backend_pid  # type: ignore[union-attr]
        connection.rollback()
        for attempt in range(1, self.attempts + 1):
            with _looking_out(engine, pid) as seen:
                try:
                    work()
                    connection.commit()
                    return
                except exc.DBAPIError as error:
                    connection.rollback()
                    if sqlstate(error) not in (_LOCK_NOT_AVAILABLE, _DEADLOCK):
                        raise
                    cause = error
            blockers = "; ".join(map(str, seen)) or "nobody who could be seen"
            if attempt < self.attempts:
                _log.warning(
                    "a lock cannot be had, trying again",
                    extra={"work": what, "attempt": attempt, "of": self.attempts, "blockers": blockers},
                )
                time.sleep(self.rest_seconds(attempt))
        pids = " and ".join(f"SELECT pg_terminate_backend({one.pid})" for one in seen)
        raise Contention(
            f"{what} could not get a lock in {self.attempts} attempts; in its way: {blockers}. "
            f"Let it come to its end{f', or end it by {pids}' if pids else ''}; then {remedy}"
        ) from cause


@dataclass(frozen=True, slots=True)
class Blocker:
    """Who holds what somebody waits for.

    Attributes:
        since: When its transaction began; None where that is not for us to see.
        query: Its present or last statement.
    """

    pid: int
    name: str
    since: datetime | None
    query: str

    def __str__(self) -> str:
        """As people are told of it."""
        since = ""
        if self.since is not None:
            since = f", in a transaction since {self.since.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
        words = " ".join(self.query.split())[:_WORDS_SHOWN]
        return f"pid {self.pid} ({self.name or 'unnamed'}){since}: {words}"


@contextmanager
def _looking_out(engine: Engine, pid: int) -> Iterator[Sequence[Blocker]]:
    """Look, beside, who blocks session ``pid``; the list holds those who were seen last."""
    seen: list[Blocker] = []
    is_over = threading.Event()
    watcher = threading.Thread(target=_look, args=(engine, pid, seen, is_over), daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        is_over.set()
        watcher.join(timeout=5)


def _look(engine: Engine, pid: int, seen: list[Blocker], is_over: threading.Event) -> None:
    try:
        while not is_over.wait(_LOOK_SECONDS):
            with engine.connect() as connection:
                found = [Blocker(*row) for row in connection.execute(_BLOCKERS, {"pid": pid})]
            if found:
                seen[:] = found
    except (exc.SQLAlchemyError, psycopg.Error):
        _log.warning("who is in the way cannot be seen", exc_info=True)


_BLOCKERS = text(
    "SELECT pid, application_name, xact_start, query FROM pg_stat_activity "
    "WHERE pid = ANY(pg_blocking_pids(:pid)) ORDER BY xact_start"
)
