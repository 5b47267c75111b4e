"""The database's time, as a process knows it between transactions. Inside of one: ``Ledger.clock``."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from sqlalchemy import text

from models.database import Database
from models.errors import Transient

_READ_EVERY_SECONDS = 10.0
_READ_AGAIN_SECONDS = 1.0
"""After it could not be read."""

_CLOCK = text("SELECT clock_timestamp()")


class DatabaseClock:
    """Reads it now and then; in between the monotonic clock goes on from there.

    Whatever has a time of its own is held against the database's. A process whose wall clock is off would
    let it expire too early, or never.

    Args:
        database: Asked; while it is away what was last heard goes on.
        monotonic: Seconds.
        own: The process' wall clock, which serves until the database was heard once.
    """

    def __init__(
        self,
        database: Database,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        own: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._database = database
        self._monotonic = monotonic
        self._own = own
        self._heard: tuple[datetime, float] | None = None
        self._read_at = float("-inf")

    def now(self) -> datetime:
        """The database's time; waits for the database once in ten seconds."""
        if self._monotonic() >= self._read_at:
            self._read()
        if self._heard is None:
            return self._own()
        moment, heard_at = self._heard
        return moment + timedelta(seconds=self._monotonic() - heard_at)

    def _read(self) -> None:
        try:
            with self._database.snapshot() as connection:
                moment: datetime = connection.execute(_CLOCK).scalar_one()
        except Transient:
            self._read_at = self._monotonic() + _READ_AGAIN_SECONDS
            return
        heard_at = self._monotonic()
        self._heard = (moment, heard_at)
        self._read_at = heard_at + _READ_EVERY_SECONDS
