"""A limiter that counts in Redis, exactly over all processes; in this process alone while it is away.

All requests that wait at the same moment share one round trip, in which one script decides on all
of them. Nobody waits for a Redis that is away::

             answer late, or none                 answers again
    COUNTING ────────────────────▶ COUNTING ALONE ─────────────▶ COUNTING
    (in Redis)  0.2 s, once        (no request asks Redis; one
                                   task knocks, ever more rarely)

Why not the ``limits`` library: its Redis storages make a round trip for each request, and its
``redis`` extra does not go with redis-py 8. Asked for both, a resolver goes back to limits 2.0.3.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from contextlib import suppress
from math import ceil

import orjson
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from api_shim.gate.limiter import PARTS, Verdict
from api_shim.gate.memory_limiter import MemoryLimiter
from models.metrics import LIMITER_SECONDS, LIMITS_SHARED
from models.quotas import Quota

_log = logging.getLogger("waybill.limits")

_SLOT = "waybill:{limits}"
"""What all keys begin with. The braces keep them in one slot: a Redis cluster runs a script on one node."""

_ANSWER_SECONDS = 0.2
_CONNECT_SECONDS = 1.0
_FIRST_REST_SECONDS, _LONGEST_REST_SECONDS = 0.25, 5.0
_MOST_KEYS = 500
_MOST_EXHAUSTED = 10_000

# One argument and one answer, in JSON: redis-py takes 20 us for the seven values of each key otherwise.
_TAKE = f"""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local questions, answers = cjson.decode(ARGV[1]), {{}}
for i = 1, #questions, 4 do
    local key, asked, amount = KEYS[1] .. questions[i], questions[i + 1], questions[i + 2]
    local part = questions[i + 3] / {PARTS}
    local current = math.floor(now / part)
    local used, first, gone = 0, current, {{}}
    local parts = redis.call('HGETALL', key)
    for j = 1, #parts, 2 do
        local at = tonumber(parts[j])
        if at <= current - {PARTS} then
            gone[#gone + 1] = parts[j]
        else
            used = used + tonumber(parts[j + 1])
            if at < first then first = at end
        end
    end
    if #gone > 0 then redis.call('HDEL', key, unpack(gone)) end
    local granted = math.max(0, math.min(asked, amount - used))
    if granted > 0 then
        redis.call('HINCRBY', key, string.format('%.0f', current), granted)
        redis.call('PEXPIRE', key, math.ceil(part * ({PARTS} + 1)))
    end
    answers[#answers + 1] = granted
    answers[#answers + 1] = math.max(0, amount - used - granted)
    answers[#answers + 1] = math.ceil((first + {PARTS}) * part - now)
end
return cjson.encode(answers)
"""

_Waiting = list[asyncio.Future[Verdict]]


class RedisLimiter:
    """Counts in Redis as long as it answers.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``.
        local: Counts while Redis is away. It is told of everything that is let pass before, so that
            this process does not begin anew when it goes.
        now: Monotonic seconds.
    """

    def __init__(self, url: str, local: MemoryLimiter, *, now: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._local = local
        self._now = now
        self._is_up = False
        self._waiting: dict[tuple[str, Quota], _Waiting] = {}
        self._exhausted: dict[str, float] = {}
        self._has_work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._sha = ""

    @property
    def is_up(self) -> bool:
        """Whether Redis counts, and not this process alone."""
        return self._is_up

    async def start(self) -> None:
        """Connect; come back once that is done, or has been tried once."""
        tried = asyncio.Event()
        self._task = asyncio.create_task(self._live(tried), name="limits")
        await tried.wait()

    async def close(self) -> None:
        """Stop counting; whoever still waits is counted here."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def take(self, key: str, quota: Quota) -> Verdict:
        """See :class:`~api_shim.gate.limiter.Limiter`."""
        until = self._exhausted.get(key)
        if until is not None:
            left = until - self._now()
            if left > 0:  # nothing is free before that, whoever asks: no need to ask
                return Verdict(False, 0, ceil(left))
            del self._exhausted[key]
        if not self._is_up:
            return self._local.count(key, quota)
        future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault((key, quota), []).append(future)
        self._has_work.set()
        return await future

    # ---- the one who speaks with Redis ---------------------------------------------------

    async def _live(self, tried: asyncio.Event) -> None:
        """Connect, ask for everybody, and begin again whenever that fails; until cancelled."""
        rest = _FIRST_REST_SECONDS
        try:
            while True:
                client = self._client()
                try:
                    async with asyncio.timeout(_CONNECT_SECONDS):
                        self._sha = await client.script_load(_TAKE)
                    self._turn(is_up=True)
                    tried.set()
                    rest = _FIRST_REST_SECONDS
                    await self._ask_for_everybody(client)
                except (RedisError, OSError, TimeoutError) as error:
                    self._turn(is_up=False, reason=repr(error))
                finally:
                    tried.set()
                    self._count_here(self._take_waiting())
                    with suppress(RedisError, OSError, TimeoutError):
                        await client.aclose()
                await asyncio.sleep(rest * random.uniform(0.75, 1.25))  # noqa: S311 - no secret
                rest = min(rest * 2, _LONGEST_REST_SECONDS)
        finally:
            self._is_up = False
            LIMITS_SHARED.set(0)

    async def _ask_for_everybody(self, client: Redis) -> None:
        while True:
            await self._has_work.wait()
            self._has_work.clear()
            while self._waiting:
                batch = self._take_waiting(_MOST_KEYS)
                try:
                    self._hand_out(batch, await self._ask(client, batch))
                except BaseException:
                    self._count_here(batch)
                    raise

    async def _ask(self, client: Redis, batch: "dict[tuple[str, Quota], _Waiting]") -> list[int]:
        questions: list[str | int] = []
        for (key, quota), waiting in batch.items():
            questions += (f":{quota.seconds}:{key}", len(waiting), quota.amount, quota.seconds * 1000)
        argument = orjson.dumps(questions)
        began = self._now()
        async with asyncio.timeout(_ANSWER_SECONDS):
            try:
                answer = await client.evalsha(self._sha, 1, _SLOT, argument)
            except NoScriptError:  # wiped meanwhile
                answer = await client.eval(_TAKE, 1, _SLOT, argument)
        LIMITER_SECONDS.observe(self._now() - began)
        found: list[int] = orjson.loads(answer)
        return found

    def _take_waiting(self, most: int | None = None) -> "dict[tuple[str, Quota], _Waiting]":
        """Those who wait, or the first of them."""
        waiting = self._waiting
        if most is None or len(waiting) <= most:
            self._waiting = {}
            return waiting
        return {key: waiting.pop(key) for key in list(waiting)[:most]}

    def _hand_out(self, batch: "dict[tuple[str, Quota], _Waiting]", answer: list[int]) -> None:
        for place, ((key, quota), waiting) in enumerate(batch.items()):
            granted, remaining, reset_ms = answer[3 * place : 3 * place + 3]
            reset = max(1, ceil(reset_ms / 1000))
            for turn, future in enumerate(waiting):
                is_allowed = turn < granted
                if is_allowed:
                    self._local.note(key, quota)
                if not future.done():
                    left = remaining + granted - turn - 1 if is_allowed else 0
                    future.set_result(Verdict(is_allowed, left, reset))
            if granted < len(waiting):
                if len(self._exhausted) >= _MOST_EXHAUSTED:
                    self._exhausted.clear()
                self._exhausted[key] = self._now() + max(0, reset_ms) / 1000

    def _count_here(self, batch: "dict[tuple[str, Quota], _Waiting]") -> None:
        for (key, quota), waiting in batch.items():
            for future in waiting:
                if not future.done():
                    future.set_result(self._local.count(key, quota))

    def _turn(self, *, is_up: bool, reason: str = "") -> None:
        """Note whether Redis counts; say so where that is news."""
        if is_up and not self._is_up:
            _log.info("limits are counted in Redis")
        elif self._is_up and not is_up:
            _log.warning("Redis is away: limits are counted in this process alone", extra={"reason": reason})
        self._is_up = is_up
        LIMITS_SHARED.set(int(is_up))

    def _client(self) -> Redis:
        return Redis.from_url(
            self._url,
            single_connection_client=True,
            socket_connect_timeout=_CONNECT_SECONDS,
            retry=Retry(NoBackoff(), 0),
            client_name="waybill-limits",
        )
