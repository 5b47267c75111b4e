"""Whether PostgreSQL can be reached, as this process finds it: a breaker, and an end to silence. No pool.

::

              a connection cannot be made              every 0.25 s
    closed ────────────────────────────────▶ open ─────────────────▶ half-open
      ▲                                        ▲                        │ one probe, by the watch's own thread
      │                                        └───── it fails ─────────┤
      └──────────────────────────────────────────── it succeeds ────────┘

The breakers of receivers (``models/breaker.py``) are kept in PostgreSQL, shared by all processes, and a
real delivery probes. Here the database itself is what is away, so each process keeps its own, and no
request is the probe: whoever had it would wait for a time-out.

A server that refuses says so at once. One that is silent (frozen, or cut off) does not: whatever waits for
its answer would wait for as long as the kernel keeps the connection. So where nothing has been heard for
a moment while somebody waits, the watch probes; where the probe is not answered either, it shuts the
sockets of those that wait. What is merely slow is left alone: the probe is answered. Where it is answered by
another server than theirs, a standby was promoted: those that wait on the old one are let go too.
"""

import logging
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress

import psycopg

from models.breaker import Phase
from models.database_hosts import server_of
from models.errors import DatabaseUnavailable
from models.metrics import DATABASE_AWAY

SUSPECT_AFTER_SECONDS = 0.5
"""So long nothing is heard while somebody waits before the watch asks."""

PROBE_EVERY_SECONDS = 0.25

CONNECT_SECONDS = 2
"""How long a connection may take to be made; libpq knows no less."""

_log = logging.getLogger("waybill.database")


class Line:
    """One open connection: since when somebody waits on it, and how to wake them.

    Args:
        descriptor: Of its socket. A descriptor of our own is kept beside it: the connection may be closed,
            and the number taken by something else, at the very moment that it is shut.
        server: Whom it reaches.
    """

    __slots__ = ("_socket", "server", "used_since")

    def __init__(self, descriptor: int, server: str, used_since: float) -> None:
        self._socket = socket.socket(fileno=os.dup(descriptor))
        self.server = server
        self.used_since: float | None = used_since

    def cut(self) -> None:
        """End it, in the middle of whatever it does: whoever waits on it sees a lost connection."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let the descriptor go."""
        self._socket.close()


class DatabaseWatch:
    """The breaker of one process's database. Begins to watch at the first connection; call from any thread.

    Args:
        probe: Makes a connection and closes it, within :data:`CONNECT_SECONDS` for each host; says
            whom it reached.
        now: Monotonic seconds.
    """

    def __init__(self, probe: Callable[[], str], *, now: Callable[[], float] = time.monotonic) -> None:
        self._probe = probe
        self._now = now
        self._lines: weakref.WeakKeyDictionary[psycopg.Connection, Line] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._is_asleep = False
        self._is_closed = False
        self._thread: threading.Thread | None = None
        self._heard_at = float("-inf")
        self._away_since: float | None = None
        self._last_away = float("-inf")
        self._is_speechless = False
        self._is_probing = False

    # ---- what everybody asks -------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """Where the breaker is."""
        if self._away_since is None:
            return Phase.CLOSED
        return Phase.HALF_OPEN if self._is_probing else Phase.OPEN

    @property
    def away_seconds(self) -> float | None:
        """Since when no connection can be made; None where it can."""
        since = self._away_since
        return None if since is None else self._now() - since

    @property
    def last_away(self) -> float:
        """The last moment (monotonic seconds) at which PostgreSQL was known to be away."""
        return self._last_away

    def admit(self) -> None:
        """Let somebody use a connection that is there, or wait for one.

        Raises:
            DatabaseUnavailable: PostgreSQL says nothing at all. Where it only takes no more connections
                (it is full, or about to stop), those that are open go on.
        """
        if self._is_speechless:
            raise DatabaseUnavailable("the database is away")

    def admit_new(self) -> None:
        """Let somebody make a connection.

        Raises:
            DatabaseUnavailable: The last attempt failed, and the next is the probe's.
        """
        if self._away_since is not None:
            raise DatabaseUnavailable("the database is away")

    # ---- what everybody tells ------------------------------------------------------------

    def opened(self, connection: psycopg.Connection) -> Line:
        """A connection was made, and is in use."""
        line = Line(connection.fileno(), server_of(connection), self._now())
        with self._lock:
            self._lines[connection] = line
        self._begin()
        self._rouse()
        return line

    def line_of(self, connection: psycopg.Connection) -> Line | None:
        """What :meth:`opened` made of it."""
        return self._lines.get(connection)

    def refused(self, error: Exception, began: float) -> None:
        """A connection could not be made, tried since ``began``: the breaker opens."""
        self._open(error, began)
        self._begin()
        self._wake.set()

    def used(self, line: Line) -> None:
        """Somebody takes it, and is going to wait on it."""
        line.used_since = self._now()
        self._rouse()

    def heard(self) -> None:
        """PostgreSQL answered something to somebody."""
        self._heard_at = self._now()

    def closed(self, connection: psycopg.Connection) -> None:
        """A connection is closed, or goes its own way."""
        with self._lock:
            line = self._lines.pop(connection, None)
        if line is not None:
            line.close()

    def close(self) -> None:
        """Watch no more."""
        self._is_closed = True
        self._wake.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=CONNECT_SECONDS + 1)
        DATABASE_AWAY.set(0)

    def _begin(self) -> None:
        with self._lock:
            if self._thread is None and not self._is_closed:
                self._thread = threading.Thread(target=self._run, name="database-watch", daemon=True)
                self._thread.start()

    def _rouse(self) -> None:
        if self._is_asleep:
            self._wake.set()

    # ---- in the watch's thread -----------------------------------------------------------

    def _run(self) -> None:
        while not self._is_closed:
            self._rest()
            if self._is_closed:
                return
            began = self._now()
            if self._away_since is not None or self._silence(began) >= SUSPECT_AFTER_SECONDS:
                self._ask(began)

    def _rest(self) -> None:
        """Until something may have to be asked; where nobody uses a connection, until somebody does."""
        if self._away_since is not None:
            self._pause(PROBE_EVERY_SECONDS)
            return
        self._wake.clear()
        self._is_asleep = True  # before looking: whoever comes after the look rouses us
        if self._oldest_use() is None and self._away_since is None and not self._is_closed:
            self._wake.wait()
        self._is_asleep = False
        if self._away_since is None:
            self._pause(max(SUSPECT_AFTER_SECONDS - self._silence(self._now()), 0.05))

    def _pause(self, seconds: float) -> None:
        self._wake.clear()
        if not self._is_closed:
            self._wake.wait(seconds)

    def _ask(self, began: float) -> None:
        """The one probe; what it finds is what is so."""
        self._is_probing = True
        try:
            server = self._probe()
        except Exception as error:
            self._open(error, began)
            if self._is_speechless:
                self._cut(began)
        else:
            self._cut(began, but_of=server)
            self._shut()
        finally:
            self._is_probing = False

    def _open(self, error: Exception, began: float) -> None:
        with self._lock:
            was_away, self._away_since = self._away_since, self._away_since or self._now()
            # A refusal in words comes from a server that lives. Elsewhere than in English it is taken for
            # silence, which costs a full server's long statements a second attempt, and nothing else.
            self._is_speechless = self._heard_at < began and "FATAL" not in str(error)
        if was_away is None:
            DATABASE_AWAY.set(1)
            _log.warning("the database is away", extra={"reason": " ".join(str(error).split())[:300]})

    def _shut(self) -> None:
        self._heard_at = now = self._now()
        with self._lock:
            if self._away_since is not None:
                self._last_away = now
            since, self._away_since, self._is_speechless = self._away_since, None, False
        if since is not None:
            DATABASE_AWAY.set(0)
            _log.info("the database is back", extra={"seconds": round(self._now() - since, 1)})

    def _cut(self, began: float, *, but_of: str | None = None) -> None:
        """Wake whoever has waited in vain since before the probe, but on the server that answers."""
        waiting = [
            line for line in self._all_lines() if (line.used_since or began) < began and line.server != but_of
        ]
        for line in waiting:
            line.cut()
        if waiting:
            _log.warning("connections were cut on which nothing came", extra={"connections": len(waiting)})

    def _silence(self, now: float) -> float:
        """For how many seconds somebody has waited and nobody has heard anything."""
        oldest = self._oldest_use()
        return 0.0 if oldest is None else now - max(oldest, self._heard_at)

    def _oldest_use(self) -> float | None:
        uses = [line.used_since for line in self._all_lines()]
        return min((since for since in uses if since is not None), default=None)

    def _all_lines(self) -> list[Line]:
        with self._lock:
            return list(self._lines.values())
