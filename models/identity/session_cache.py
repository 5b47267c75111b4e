"""Who is logged in, in Redis for 24 hours: for operators to see. A cache only: nothing is decided by it.

Written after the commit, with short time-outs; while Redis is away it is left alone for a while.
"""

import logging
import time
from datetime import timedelta
from uuid import UUID

import redis

from models.identity.principals import Principal
from models.job import to_json

LIFETIME = timedelta(hours=24)
PREFIX = "waybill:session:"

_TIMEOUT_SECONDS = 0.25
_LEFT_ALONE_SECONDS = 10.0
_log = logging.getLogger("waybill.identity")


class SessionCache:
    """Sessions by the id of their refresh family. Never raises for a Redis that is away.

    Args:
        url: Of the Redis; empty for none.
    """

    def __init__(self, url: str) -> None:
        timeout = _TIMEOUT_SECONDS
        self._client = (
            redis.Redis.from_url(url, socket_timeout=timeout, socket_connect_timeout=timeout) if url else None
        )
        self._away_until = float("-inf")

    def put(self, family_id: UUID, principal: Principal) -> None:
        """Note a session that began or went on."""
        if self._client is not None and time.monotonic() >= self._away_until:
            entry = to_json({"userId": str(principal.id), "role": str(principal.role)})
            try:
                self._client.set(f"{PREFIX}{family_id}", entry, ex=LIFETIME)
            except redis.RedisError as error:
                self._is_away(error)

    def drop(self, family_id: UUID) -> None:
        """Forget a session that ended."""
        if self._client is not None and time.monotonic() >= self._away_until:
            try:
                self._client.delete(f"{PREFIX}{family_id}")
            except redis.RedisError as error:
                self._is_away(error)

    def close(self) -> None:
        """Let go of the connections."""
        if self._client is not None:
            self._client.close()

    def _is_away(self, error: redis.RedisError) -> None:
        self._away_until = time.monotonic() + _LEFT_ALONE_SECONDS
        _log.warning("sessions are not cached now", extra={"reason": type(error).__name__})
