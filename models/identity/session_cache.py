"""Who is logged in, in Redis for 24 hours: for operators to see. A cache only: nothing is decided by it.

Written after the commit; while Redis is away nothing is noted, and nobody waits.
"""

from contextlib import suppress
from datetime import timedelta
from uuid import UUID

from models.identity.principals import Principal
from models.job import to_json
from models.redis_client import RedisAway, RedisClient

LIFETIME = timedelta(hours=24)
PREFIX = "waybill:session:"


class SessionCache:
    """Sessions by the id of their refresh family. Never raises for a Redis that is away.

    Args:
        client: Of this process; None where there is no Redis.
    """

    def __init__(self, client: RedisClient | None) -> None:
        self._client = client

    def put(self, family_id: UUID, principal: Principal) -> None:
        """Note a session that began or went on."""
        if self._client is not None:
            entry = to_json({"userId": str(principal.id), "role": str(principal.role)})
            with suppress(RedisAway):
                self._client.ask(lambda redis: redis.set(f"{PREFIX}{family_id}", entry, ex=LIFETIME))

    def drop(self, family_id: UUID) -> None:
        """Forget a session that ended."""
        if self._client is not None:
            with suppress(RedisAway):
                self._client.ask(lambda redis: redis.delete(f"{PREFIX}{family_id}"))
