"""Attempts that may kill this process, on record before they are made. Who is tried so: ``applier.py``.

An attempt on record without an end is a death to whoever reads it later. But the lane may be taken, or the
database go away, between the record and the try: then this process lives, and takes its word back. The record
of one that died stays, and so does that of a try under which the database was lost.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from sqlalchemy import Connection

from models.database import Database
from models.errors import Contention, DatabaseUnavailable
from models.failpoints import Step
from models.ledger import CrashAttempt, Ledger


class CrashAttempts:
    """What this process has put on record against suspects, and has still to take back.

    Args:
        database: One of this process's own.
        ledger: Keeps the record.
    """

    def __init__(self, database: Database, ledger: Ledger) -> None:
        self._database = database
        self._ledger = ledger
        self._outlived: set[CrashAttempt] = set()

    @contextmanager
    def outlived(self) -> Iterator[list[CrashAttempt]]:
        """A try: what is in the list when the block is left has come to no end, and is taken back.

        Taking back does no harm to a job that ended, or is to be retried: it has no such attempt any more.
        """
        recorded: list[CrashAttempt] = []
        try:
            yield recorded
        except Exception:  # nothing else: what ends the process is what the record is for
            self._give_up(recorded)
            raise
        self._give_up(recorded)

    def record(self, connection: Connection, job_id: UUID) -> CrashAttempt:
        """Put an attempt on record, as this process's."""
        return self._ledger.record_crash_attempt(connection, job_id, worker_name(os.getpid()))

    def count(self, job_id: UUID) -> int:
        """How many attempts on record against a job are still to be taken back."""
        return sum(attempt.job_id == job_id for attempt in tuple(self._outlived))

    def take_back(self) -> None:
        """Take back what can be taken back now; a job that is held elsewhere waits for the next call."""
        for attempt in tuple(self._outlived):
            try:
                with self._database.transaction(Step.CRASH_ATTEMPT) as connection:
                    self._ledger.take_back_crash_attempt(connection, attempt)
            except Contention:
                continue
            except DatabaseUnavailable:
                return
            self._outlived.discard(attempt)

    def _give_up(self, recorded: list[CrashAttempt]) -> None:
        if recorded:
            self._outlived.update(recorded)
            self.take_back()


def worker_name(pid: int) -> str:
    """Who applies, for the evidence against a job that kills its worker: the host and the process."""
    return f"{socket.gethostname()}:{pid}"
