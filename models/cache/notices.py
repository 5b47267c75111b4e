"""Changes by workers that do not reach Redis, told through PostgreSQL to those that do, who forget them.

A worker that cannot mark what it changes says so in the very transaction: with the commit every API
process hears of it. What is told while a process does not listen is lost, so it forgets everything when
it begins to.
"""

import logging
import threading

import psycopg
from sqlalchemy import Connection, text

from models.cache.cache import Cache, Mark
from models.database import Database
from models.errors import Transient

CHANNEL = "waybill_cache"

_KEYS_AT_ONCE = 60
"""A notification holds 8,000 bytes, and no key is longer than 130."""

_LOOK_UP_SECONDS = 1.0
_log = logging.getLogger("waybill.cache")

_TELL = text("SELECT pg_notify(:channel, keys) FROM unnest(CAST(:told AS text[])) AS keys")


def tell(connection: Connection, mark: Mark) -> None:
    """Say in the transaction that changes it what readers cannot see to be marked. Nothing where they can."""
    if mark.is_set or not (mark.keys or mark.lists):
        return
    keys = [*mark.keys, *mark.lists]
    told = [" ".join(keys[start : start + _KEYS_AT_ONCE]) for start in range(0, len(keys), _KEYS_AT_ONCE)]
    connection.execute(_TELL, {"channel": CHANNEL, "told": told})


class CacheNotices:
    """Listens, in a thread of its own and on a connection of its own, and has the cache forget.

    Args:
        database: Where it is told.
        cache: Of this process.
    """

    def __init__(self, database: Database, cache: Cache) -> None:
        self._database = database
        self._cache = cache
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cache-notices", daemon=True)

    async def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def close(self) -> None:
        """Listen no more."""
        self._is_closing.set()
        if self._thread.is_alive():
            self._thread.join(2 * _LOOK_UP_SECONDS)

    def _run(self) -> None:
        while not self._is_closing.is_set():
            try:
                self._listen()
            except (Transient, psycopg.Error, OSError) as error:
                _log.warning("cache notices are not heard now", extra={"reason": type(error).__name__})
            except Exception:
                _log.exception("cache notices are not heard now")
            self._is_closing.wait(_LOOK_UP_SECONDS)

    def _listen(self) -> None:
        connection = self._database.listen(CHANNEL)
        try:
            self._cache.forget_all()
            while not self._is_closing.is_set():
                for notice in connection.notifies(timeout=_LOOK_UP_SECONDS):
                    self._cache.forget(notice.payload.split(" "))
        finally:
            connection.close()
