"""The guard of the log-in: who has failed too often waits, longer each time, and never for good.

Failures are counted by account and by address, known or not, under keyed digests: the table tells
nobody's email. After a few free ones each failure locks for twice as long as the one before. Where a
user has logged in before (the *pair* of account and address), only what failed there counts, so that a
stranger who guesses from elsewhere does not lock the owner out.
"""

import math
from collections.abc import Sequence
from datetime import timedelta
from hashlib import blake2b

from sqlalchemy import Connection, text

from models.errors import RateLimited

FREE_FAILURES = 4
"""Of an account, or at a pair that is known: the next one locks for a second, then two, four …"""

FREE_ADDRESS_FAILURES = 30
"""Many people may share an address."""

LONGEST_LOCK = timedelta(minutes=15)
FORGOTTEN_AFTER = timedelta(hours=1)
"""Failures count together while they are not further apart."""

KNOWN_FOR = timedelta(days=30)
_PRUNED_AT_ONCE = 20


class LoginGuard:
    """Counts failures in PostgreSQL. Works inside the caller's transaction; the time is the database's.

    Args:
        key: 32 secret bytes for the digests.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def check(self, connection: Connection, email: str, address: str) -> None:
        """Let an attempt pass, or not.

        Raises:
            RateLimited: Too many have failed; ``retry_after`` says when to try again.
        """
        account, place, pair = self._digests(email, address)
        parameters = {"account": account, "place": place, "pair": pair}
        seconds = connection.execute(_LOCKED_SECONDS, parameters).scalar_one()
        if seconds is not None and seconds > 0:
            raise RateLimited("Too many log-ins failed", retry_after=math.ceil(seconds))

    def failed(self, connection: Connection, email: str, address: str) -> None:
        """Count a failure."""
        account, place, pair = self._digests(email, address)
        is_known = connection.execute(_IS_KNOWN, {"pair": pair}).scalar_one()
        if is_known:
            self._count(connection, [(pair, FREE_FAILURES)])
        else:
            self._count(connection, [(account, FREE_FAILURES), (place, FREE_ADDRESS_FAILURES)])
        connection.execute(PRUNE, {"most": _PRUNED_AT_ONCE})

    def succeeded(self, connection: Connection, email: str, address: str) -> None:
        """Note that this account is at home at this address, and forget what failed.

        Where it was known to be, what strangers failed elsewhere is not forgotten: they would begin anew
        with each of the owner's log-ins. Nor is what failed at the address, whosever log-ins succeed there.
        """
        account, _, pair = self._digests(email, address)
        connection.execute(_FORGET, {"account": account, "pair": pair})
        connection.execute(_KNOW, {"pair": pair, "known_for": KNOWN_FOR})

    def _count(self, connection: Connection, subjects: Sequence[tuple[bytes, int]]) -> None:
        for digest, free in sorted(subjects):  # in one order, so that two never wait for each other
            parameters = {
                "digest": digest,
                "free": free,
                "longest": LONGEST_LOCK.total_seconds(),
                "window": FORGOTTEN_AFTER,
            }
            connection.execute(_COUNT, parameters)

    def _digests(self, email: str, address: str) -> tuple[bytes, bytes, bytes]:
        """Of the account, the address, and the pair of them."""
        account = email.lower()
        return (
            self._digest("account", account),
            self._digest("address", address),
            self._digest("pair", account, address),
        )

    def _digest(self, *parts: str) -> bytes:
        return blake2b("\0".join(parts).encode(), key=self._key, digest_size=32).digest()


_KNOWN = "EXISTS (SELECT FROM login_attempts WHERE digest = :pair AND known_until > now())"

_LOCKED_SECONDS = text(f"""
SELECT extract(epoch FROM max(locked_until) - clock_timestamp()) FROM login_attempts
WHERE digest = :pair OR (digest IN (:account, :place) AND NOT {_KNOWN})
""")

_IS_KNOWN = text(f"SELECT {_KNOWN}")

_COUNT = text("""
INSERT INTO login_attempts AS attempt (digest, failures, last_at) VALUES (:digest, 1, clock_timestamp())
ON CONFLICT (digest) DO UPDATE SET
    failures = CASE WHEN attempt.last_at < clock_timestamp() - :window THEN 1 ELSE attempt.failures + 1 END,
    locked_until = CASE
        WHEN attempt.last_at < clock_timestamp() - :window OR attempt.failures < :free THEN NULL
        ELSE clock_timestamp()
            + make_interval(secs => least(:longest, power(2, least(attempt.failures - :free, 30)))) END,
    last_at = clock_timestamp()
""")

_KNOW = text("""
INSERT INTO login_attempts (digest, failures, last_at, known_until)
VALUES (:pair, 0, clock_timestamp(), now() + :known_for)
ON CONFLICT (digest) DO UPDATE
SET failures = 0, locked_until = NULL, last_at = clock_timestamp(), known_until = excluded.known_until
""")

_FORGET = text(f"DELETE FROM login_attempts WHERE digest = :account AND NOT {_KNOWN}")

_IS_STALE = "last_at < now() - interval '1 day' AND (known_until IS NULL OR known_until < now())"

PRUNE = text(f"""
DELETE FROM login_attempts WHERE digest IN (
    SELECT digest FROM login_attempts WHERE {_IS_STALE} ORDER BY last_at LIMIT :most FOR UPDATE SKIP LOCKED)
""")
"""Forgets up to ``most`` failures and places that do not count any more."""

COUNT_STALE = text(f"SELECT count(*) FROM login_attempts WHERE {_IS_STALE}")
