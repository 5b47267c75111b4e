"""The one thread of a process that listens for changes, and reads for all who wait. No knowledge of them."""

import asyncio
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Protocol

import psycopg
from sqlalchemy import Connection

from models.database import Database
from models.errors import Transient
from models.ledger import CHANNEL
from models.metrics import CHANGE_READS

_log = logging.getLogger("waybill.changes")

_KEEP_LISTENING = timedelta(seconds=10)
_LONGEST_BREATH_SECONDS = 0.25
_HURRIED_SECONDS = 0.05


class Reader(Protocol):
    """Reads for many who wait for the same kind of news."""

    @property
    def is_wanted(self) -> bool:
        """Whether anybody waits."""

    @property
    def is_hurried(self) -> bool:
        """Whether to read again very soon, also without a notification."""

    def read(self, connection: Connection, *, everything: bool) -> Callable[[], None] | None:
        """Read what is news, in a query or two however many wait; called in the listener's thread.

        Args:
            connection: In autocommit.
            everything: Something changed. Else only those who came since need to be served.

        Returns:
            What hands it out, to be called on the event loop.
        """


class Listener:
    """Lets readers read at each NOTIFY, when somebody new has come, and once a second anyway.

    While nobody waits it does not even listen. Notifications that come while it reads are one.

    Args:
        database: Where to listen and read.
        readers: Who reads; each for its own kind of waiting.
        reread_after: At least this often, should a notification be lost, and for what makes none.
    """

    def __init__(
        self, database: Database, readers: Sequence[Reader], *, reread_after: timedelta = timedelta(seconds=1)
    ) -> None:
        self._database = database
        self._readers = tuple(readers)
        self._reread_seconds = reread_after.total_seconds()
        self._somebody_waits = threading.Event()
        self._nudge_out, self._nudge_in = socket.socketpair()
        self._nudge_out.setblocking(False)
        self._nudge_in.setblocking(False)
        self._is_nudged = False
        self._is_closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def nudge(self) -> None:
        """Somebody came to wait: serve them now. Call it on the event loop."""
        if self._is_closed:
            return
        self._loop = asyncio.get_running_loop()
        if not self._is_nudged:
            self._is_nudged = True
            self._wake_thread()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="changes", daemon=True)
            self._thread.start()

    def close(self, timeout_seconds: float = 3) -> None:
        """Stop listening."""
        self._is_closed = True
        self._wake_thread()
        if self._thread is not None:
            self._thread.join(timeout_seconds)
        self._nudge_in.close()
        if self._thread is None or not self._thread.is_alive():
            self._nudge_out.close()

    def _wake_thread(self) -> None:
        self._somebody_waits.set()
        with suppress(OSError):  # full: it is awake already
            self._nudge_in.send(b"!")

    # ---- in the thread -------------------------------------------------------------------

    def _run(self) -> None:
        while not self._is_closed:
            self._somebody_waits.wait()
            try:
                self._listen()
            except (Transient, psycopg.Error, OSError) as error:
                _log.warning("lost the notification channel", extra={"reason": str(error)})
                time.sleep(self._reread_seconds)
            except Exception:
                _log.exception("the listener stumbled")
                time.sleep(self._reread_seconds)

    def _listen(self) -> None:
        """Listen and read until nobody has waited for a while."""
        connection = self._database.listen(CHANNEL)
        selector = selectors.DefaultSelector()
        try:
            selector.register(connection.fileno(), selectors.EVENT_READ, connection)
            selector.register(self._nudge_out, selectors.EVENT_READ)
            wanted_at, everything = time.monotonic(), True
            read_all_at = 0.0
            while not self._is_closed:
                began = time.monotonic()
                self._read(everything)
                if everything:
                    read_all_at = began
                if any(reader.is_wanted for reader in self._readers):
                    wanted_at = time.monotonic()
                elif time.monotonic() - wanted_at > _KEEP_LISTENING.total_seconds():
                    self._somebody_waits.clear()
                    if not any(reader.is_wanted for reader in self._readers):
                        return
                # Reading takes half of the time at most: what comes meanwhile is read together.
                time.sleep(min(time.monotonic() - began, _LONGEST_BREATH_SECONDS))
                everything = self._wait(selector, read_all_at + self._reread_seconds)
        finally:
            selector.close()
            connection.close()

    def _wait(self, selector: selectors.BaseSelector, until: float) -> bool:
        """Come back when something changed (True), somebody came (False), or it is time (True)."""
        patience = until - time.monotonic()
        if any(reader.is_hurried for reader in self._readers):
            patience = min(patience, _HURRIED_SECONDS)
        ready = selector.select(max(0.0, patience))
        has_changed = False
        for key, _ in ready:
            if key.data is None:
                with suppress(BlockingIOError):
                    self._nudge_out.recv(64)
            else:
                has_changed = _take_notifications(key.data) or has_changed
        self._is_nudged = False
        return has_changed or time.monotonic() >= until

    def _read(self, everything: bool) -> None:
        wanted = [reader for reader in self._readers if reader.is_wanted]
        if not wanted:
            return
        CHANGE_READS.inc()
        with self._database.snapshot() as connection:
            for reader in wanted:
                hand_out = reader.read(connection, everything=everything)
                if hand_out is not None and self._loop is not None:
                    with suppress(RuntimeError):  # the event loop is gone, and with it whoever waited
                        self._loop.call_soon_threadsafe(hand_out)


def _take_notifications(connection: Any) -> bool:
    """Whether there were any; raises where the connection is lost."""
    connection.pgconn.consume_input()
    has_some = False
    while connection.pgconn.notifies() is not None:
        has_some = True
    return has_some
