"""A client of a Redis that may go away: short time-outs, no retries, left alone for a while after a fault.

For what goes on without Redis. Who counts in it (``api_shim/gate/redis_limiter.py``) waits differently.
"""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

Answer = TypeVar("Answer")

TIMEOUT_SECONDS = 0.25
REST_SECONDS = 2.0
"""Nobody asks for so long after a fault: a Redis that swallows requests costs one time-out in two seconds."""

_log = logging.getLogger("waybill.redis")


class RedisAway(Exception):
    """It did not answer, or would not take it, or rests after a fault."""


class RedisClient:
    """A Redis for several threads of one process. Connects on first use.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``.
        name: Shown in ``CLIENT LIST``.
        now: Monotonic seconds.
    """

    def __init__(self, url: str, *, name: str, now: Callable[[], float] = time.monotonic) -> None:
        self._redis = Redis.from_url(
            url,
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),
            client_name=f"waybill-{name}",
        )
        self._name = name
        self._now = now
        self._rests_until = float("-inf")
        self._is_away = False

    def ask(self, question: Callable[[Redis], Answer]) -> Answer:
        """What ``question`` makes of the Redis.

        Raises:
            RedisAway: At once while it rests, else after :data:`TIMEOUT_SECONDS` at most for a connection
                and as much for an answer.
        """
        if self._now() < self._rests_until:
            raise RedisAway
        try:
            answer = question(self._redis)
        except RedisError as error:
            self._rests_until = self._now() + REST_SECONDS
            if not self._is_away:
                _log.warning(
                    "Redis is away: going on without",
                    extra={"client": self._name, "reason": type(error).__name__},
                )
            self._is_away = True
            raise RedisAway from error
        if self._is_away:
            _log.info("Redis is back", extra={"client": self._name})
        self._is_away = False
        return answer

    def close(self) -> None:
        """Let go of the connections."""
        self._redis.close()
