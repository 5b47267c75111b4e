"""Standing: what a user is now, whatever its token says. Disabled or demoted, it shows within seconds.

A token lives for half an hour; a user may be disabled or demoted meanwhile. So each process remembers
what the users that it meets are, and reads them again, all at once, every few seconds: no request pays
for a query of its own. While the database is away what was known is believed for a bounded time.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import exc, text

from models.database import Database, array
from models.errors import DatabaseUnavailable, Transient, Unauthorized
from models.identity.principals import Principal, Role
from models.identity.tokens import Verified

REFRESH_AFTER_SECONDS = 2.0
"""So old, it is read again while it is still used."""

STALE_AFTER_SECONDS = 4.0
"""So old, it is not used before it has been read again."""

TRUST_SECONDS = 60.0
"""How long it is believed while the database is away."""

NO_LONGER_VALID = "The token is no longer valid; log in again"
"""What one hears who is disabled or gone."""

_AWAY_SECONDS = 1.0
_CAPACITY = 50_000
_log = logging.getLogger("waybill.identity")


@dataclass(frozen=True, slots=True)
class Standing:
    """What a user was when it was last read.

    Attributes:
        principal: With the role that it has now; None where there is no such user, or it is disabled.
        tokens_valid_from: Tokens issued earlier are refused (POSIX seconds).
        read_at: On the monotonic clock.
    """

    principal: Principal | None
    tokens_valid_from: float
    read_at: float

    def admit(self, verified: Verified) -> Principal:
        """The user of a good token, as it is now.

        Raises:
            Unauthorized: Disabled or gone, or its tokens were withdrawn.
        """
        if self.principal is None or verified.issued_at < self.tokens_valid_from:
            raise Unauthorized(NO_LONGER_VALID)
        return self.principal


class Standings:
    """Remembers standings. One per process; its methods may be called from any thread.

    Args:
        database: Where users are kept.
        on_load: Called with every reading: what else a process looks after now and then.
        now: The monotonic clock.
    """

    def __init__(
        self,
        database: Database,
        *,
        on_load: Callable[[], None] = lambda: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._on_load = on_load
        self._now = now
        self._known: dict[UUID, Standing] = {}
        self._away_until = float("-inf")
        self._lock = threading.Lock()

    def recall(self, user_id: UUID) -> tuple[Standing | None, bool]:
        """What is known well enough to be used, and whether it should be read again soon."""
        known = self._known.get(user_id)
        if known is None:
            return None, True
        age = self._now() - known.read_at
        if age > STALE_AFTER_SECONDS:
            return None, True
        return known, age > REFRESH_AFTER_SECONDS

    def of(self, user_id: UUID) -> Standing:
        """A user's standing; reads it where it is not known well enough.

        Raises:
            DatabaseUnavailable: It cannot be read, and is not known or for too long.
        """
        known, _ = self.recall(user_id)
        if known is None:
            [known] = self.load([user_id])
            if known is None:
                raise DatabaseUnavailable("users cannot be read now")
        return known

    def load(self, ids: Sequence[UUID]) -> list[Standing | None]:
        """Read standings, all in one query; None where it can be neither read nor believed any longer."""
        began = self._now()
        if began >= self._away_until:
            try:
                self._on_load()
                self._read(ids, began)
            except Transient as error:
                self._away_until = self._now() + _AWAY_SECONDS
                _log.warning("users cannot be read; what is known is believed", extra={"reason": str(error)})
        oldest = began - TRUST_SECONDS
        found = (self._known.get(one) for one in ids)
        return [one if one is not None and one.read_at >= oldest else None for one in found]

    @property
    def active(self) -> int:
        """Users whose standing was asked for in the last minute."""
        since = self._now() - ACTIVE_SECONDS
        return sum(one.read_at > since for one in list(self._known.values()))

    def _read(self, ids: Sequence[UUID], read_at: float) -> None:
        try:
            with self._database.snapshot() as connection:
                rows = connection.execute(_STANDINGS, {"ids": array(set(ids))}).all()
        except exc.DBAPIError as error:
            raise DatabaseUnavailable("the users cannot be read: is the database migrated?") from error
        found = {
            row[0]: Standing(None if row[3] else Principal(row[0], row[1], Role(row[2])), row[4], read_at)
            for row in rows
        }
        with self._lock:
            for one in ids:
                self._known.pop(one, None)  # what was read last stands last
                self._known[one] = found.get(one, Standing(None, 0.0, read_at))
            while len(self._known) > _CAPACITY:
                del self._known[next(iter(self._known))]


ACTIVE_SECONDS = 60.0

_STANDINGS = text("""
SELECT id, email, role, is_disabled, extract(epoch FROM tokens_valid_from)::float8
FROM users WHERE id = ANY(CAST(:ids AS uuid[]))
""")
