"""The cache in Redis: entries, leases and marks, and the scripts that exchange one for another.

Under one key stands one of::

    =<version>:<payload>      an entry
    ?<token>                  a lease: a reader is fetching the truth, to fill it in
    !<token>@<ends>!<token>…  marks: of writers who are about to commit, or have just done so

Every step is a compare-and-set on what stands there, so no order of steps leaves an old entry behind:
a lease does not outlive a mark, and only its own writer turns a mark into an entry. Writers of an instance
follow each other in its lane, so a mark replaces the one before. A list is changed by many at a time: it
stays marked until each has settled, or his mark has ended. The scheme is that of memcache leases (Nishtala
et al., Scaling Memcache at Facebook, NSDI 2013, section 3.2.1). What is left: a commit that takes longer
than :data:`MARK_SECONDS` *and* whose worker dies before it settles.
"""

import logging
import secrets
import threading
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from redis import Redis

from models.cache.cache import Entry, ListLook, Look, Mark
from models.redis_client import REST_SECONDS, RedisAway, RedisClient

ENTRY_LIFE = timedelta(hours=1)
LIST_LIFE = timedelta(minutes=5)
MARK_SECONDS = 60
"""Longer than a commit may take: statement and TCP time-outs are 30 s each."""

LEASE_SECONDS = 10
MAX_ENTRY_BYTES = 64 * 1024
MAX_PAGE_BYTES = 256 * 1024
"""Larger ones are not kept: they would cost Redis more than they save PostgreSQL."""

MAX_DEBTS = 100_000
"""Keys owed; beyond it everything is forgotten instead."""

_SLOT = "waybill:{cache}:"
"""What all keys begin with. The braces keep them in one slot: a Redis cluster runs a script on one node."""

_ANY = 2**53
_log = logging.getLogger("waybill.cache")

_LOOK = """
local found = redis.call('MGET', unpack(KEYS))
for i, key in ipairs(KEYS) do
    if not found[i] then
        redis.call('SET', key, ARGV[1], 'PX', ARGV[2])
        found[i] = '?'
    end
end
return found
"""

_FILL = """
for i, key in ipairs(KEYS) do
    if redis.call('GET', key) == ARGV[1] then redis.call('SET', key, ARGV[2 + i], 'PX', ARGV[2]) end
end
"""

_LOOK_AT_LIST = """
local standing = redis.call('GET', KEYS[1])
if not standing then
    standing = '=0:' .. ARGV[1]
    redis.call('SET', KEYS[1], standing, 'PX', ARGV[2])
elseif string.sub(standing, 1, 1) ~= '=' then
    return {'', false}
end
local generation = string.sub(standing, 4)
return {generation, redis.call('GET', ARGV[3] .. generation .. ':' .. ARGV[4])}
"""

# The marks under a key that have not ended, but for one; and in how many milliseconds the last of them does.
_MARKS = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function marks_but(key, token)
    local left, last = '', now
    if redis.call('GETRANGE', key, 0, 0) == '!' then
        for mark, ends in string.gmatch(redis.call('GET', key), '(!%x+)@(%d+)') do
            if mark ~= token and tonumber(ends) > now then
                left, last = left .. mark .. '@' .. ends, math.max(last, ends)
            end
        end
    end
    return left, last - now
end
"""

_MARK = (
    _MARKS
    + """
local mark = ARGV[1] .. '@' .. string.format('%.0f', now + ARGV[2])
for i, key in ipairs(KEYS) do
    local others = i > tonumber(ARGV[3]) and marks_but(key, '') or ''
    redis.call('SET', key, others .. mark, 'PX', ARGV[2])
end
"""
)

# Others' marks stay: their writers commit later, and settle. A lease goes, and an entry that came over an
# expired mark, unless it is newer. Over a lease nothing is set: who came later may have settled already.
# Where nothing stands nobody has been misled.
_SETTLE = (
    _MARKS
    + """
for i, key in ipairs(KEYS) do
    local standing, over, entry = redis.call('GET', key), tonumber(ARGV[1 + 2 * i]), ARGV[2 + 2 * i]
    local kind = standing and string.sub(standing, 1, 1)
    local others, life = marks_but(key, ARGV[1])
    local is_ours = kind == '!' and string.find(standing, ARGV[1] .. '@', 1, true)
    if kind == '=' then
        is_ours = tonumber(string.sub(standing, 2, string.find(standing, ':', 2, true) - 1)) < over
    end
    if others ~= '' then
        redis.call('SET', key, others, 'PX', life)
    elseif kind == '?' then
        redis.call('UNLINK', key)
    elseif is_ours then
        if entry == '' then redis.call('UNLINK', key) else redis.call('SET', key, entry, 'PX', ARGV[2]) end
    end
end
"""
)

_FORGET = (
    _MARKS
    + """
for i, key in ipairs(KEYS) do
    local others, life = marks_but(key, ARGV[i])
    if others == '' then redis.call('UNLINK', key) else redis.call('SET', key, others, 'PX', life) end
end
"""
)


class RedisCache:
    """See :class:`~models.cache.cache.Cache`. For several threads of one process.

    What could not be told to Redis is owed: a thread tries again until it is paid.

    Args:
        client: Of this process; whoever made it closes it.
    """

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        scripts = Redis()  # connects to nothing: it only hashes them
        self._look = scripts.register_script(_LOOK)
        self._fill = scripts.register_script(_FILL)
        self._look_at_list = scripts.register_script(_LOOK_AT_LIST)
        self._mark = scripts.register_script(_MARK)
        self._settle = scripts.register_script(_SETTLE)
        self._forget = scripts.register_script(_FORGET)
        self._debts: dict[str, str] = {}
        self._owes_all = False
        self._paying: threading.Thread | None = None
        self._lock = threading.Lock()
        self._is_closing = threading.Event()

    # ---- reading -------------------------------------------------------------------------

    def look(self, keys: Sequence[str]) -> Look:
        """See :class:`~models.cache.cache.Cache`."""
        lease = f"?{secrets.token_hex(8)}"
        try:
            standing = self._run(self._look, keys, [lease, LEASE_SECONDS * 1000])
        except RedisAway:
            return Look()
        found = {key: _entry(one) for key, one in zip(keys, standing, strict=True) if one[:1] == b"="}
        leased = frozenset(key for key, one in zip(keys, standing, strict=True) if one == b"?")
        return Look(found, lease, leased)

    def fill(self, look: Look, entries: Mapping[str, Entry]) -> None:
        """See :class:`~models.cache.cache.Cache`."""
        mine = {key: one for key, one in entries.items() if key in look.leased and _is_small(one)}
        if mine:
            life = int(ENTRY_LIFE.total_seconds() * 1000)
            self._try(self._fill, list(mine), [look.lease, life, *map(_text, mine.values())])

    def look_at_list(self, key: str, question: str) -> ListLook:
        """See :class:`~models.cache.cache.Cache`."""
        fresh, life = secrets.token_hex(8), int(ENTRY_LIFE.total_seconds() * 1000)
        try:
            answer = self._run(self._look_at_list, [key], [fresh, life, f"{_SLOT}page:", question])
        except RedisAway:
            return ListLook()
        return ListLook(answer[1], answer[0].decode())

    def fill_list(self, look: ListLook, question: str, page: bytes) -> None:
        """See :class:`~models.cache.cache.Cache`."""
        if look.generation and len(page) <= MAX_PAGE_BYTES:
            key = f"{_SLOT}page:{look.generation}:{question}"
            try:
                self._client.ask(lambda redis: redis.set(key, page, ex=LIST_LIFE))
            except RedisAway:
                return

    # ---- changing ------------------------------------------------------------------------

    def mark(self, keys: Iterable[str], lists: Iterable[str]) -> Mark:
        """See :class:`~models.cache.cache.Cache`."""
        token = f"!{secrets.token_hex(8)}"
        ones, many = tuple(keys), tuple(lists)
        if not ones and not many:
            return Mark(token)
        try:
            self._run(self._mark, [*ones, *many], [token, int(MARK_SECONDS * 1000), len(ones)])
        except RedisAway:
            return Mark(token, ones, many)
        return Mark(token, ones, many, is_set=True)

    def settle(self, mark: Mark, entries: Mapping[str, Entry]) -> None:
        """See :class:`~models.cache.cache.Cache`."""
        if not mark.keys and not mark.lists:
            return
        if not mark.is_set:
            self._owe(dict.fromkeys([*mark.keys, *mark.lists], mark.token))
            return
        arguments: list[bytes | str | int] = [mark.token, int(ENTRY_LIFE.total_seconds() * 1000)]
        for key in mark.keys:
            entry = entries.get(key)
            is_kept = entry is not None and _is_small(entry)
            arguments += (entry.version if entry is not None else _ANY, _text(entry) if is_kept else b"")
        for _ in mark.lists:
            arguments += (_ANY, f"=0:{secrets.token_hex(8)}")
        if not self._try(self._settle, [*mark.keys, *mark.lists], arguments):
            self._owe(dict.fromkeys([*mark.keys, *mark.lists], mark.token))

    # ---- debts ---------------------------------------------------------------------------

    def forget(self, keys: Iterable[str]) -> None:
        """See :class:`~models.cache.cache.Cache`."""
        self._owe(dict.fromkeys(keys, ""))

    def forget_all(self) -> None:
        """See :class:`~models.cache.cache.Cache`."""
        with self._lock:
            self._owes_all = True
        self._owe({})

    def _owe(self, marked: Mapping[str, str]) -> None:
        """Note keys, with the marks that a silent Redis may still set: it does late what it was told."""
        with self._lock:
            self._debts = _merged(self._debts, marked)
            if len(self._debts) > MAX_DEBTS:
                self._debts, self._owes_all = {}, True
            if self._paying is None or not self._paying.is_alive():
                self._paying = threading.Thread(target=self._pay, name="cache-debts", daemon=True)
                self._paying.start()

    def _pay(self) -> None:
        """Forget what is owed; again and again while Redis is away."""
        while True:
            with self._lock:
                debts, owes_all = list(self._debts.items()), self._owes_all
                if not debts and not owes_all:
                    self._paying = None
                    return
                self._debts, self._owes_all = {}, False  # what is owed from now on is owed once more
            try:
                if owes_all:
                    self._client.ask(self._forget_every)
                for start in range(0, len(debts), 1000):
                    part = debts[start : start + 1000]
                    self._run(self._forget, [key for key, _ in part], [token for _, token in part])
            except RedisAway:
                with self._lock:
                    self._debts = _merged(dict(debts), self._debts)
                    self._owes_all = self._owes_all or owes_all
                if self._is_closing.wait(REST_SECONDS / 4):
                    _log.warning("cache entries may be old", extra={"keys": len(debts), "all": owes_all})
                    return

    def _forget_every(self, redis: Redis) -> None:
        for pattern in (f"{_SLOT}one:*", f"{_SLOT}list:*"):
            batch: list[bytes] = []
            for key in redis.scan_iter(pattern.replace("{", "[{]"), count=1000):
                batch.append(key)
                if len(batch) == 1000:
                    self._forget(keys=batch, client=redis)
                    batch = []
            if batch:
                self._forget(keys=batch, client=redis)

    def close(self) -> None:
        """See :class:`~models.cache.cache.Cache`."""
        self._is_closing.set()
        paying = self._paying
        if paying is not None:
            paying.join(1)

    def _run(self, script: Any, keys: Sequence[str], arguments: Sequence[bytes | str | int]) -> Any:
        return self._client.ask(lambda redis: script(keys=keys, args=arguments, client=redis))

    def _try(self, script: Any, keys: Sequence[str], arguments: Sequence[bytes | str | int]) -> bool:
        try:
            self._run(script, keys, arguments)
        except RedisAway:
            return False
        return True


def _merged(debts: dict[str, str], later: Mapping[str, str]) -> dict[str, str]:
    """``debts`` with what came later; a mark is not forgotten for one that has none."""
    debts.update((key, token or debts.get(key, "")) for key, token in later.items())
    return debts


def entry_key(resource: str, identifier: object) -> str:
    """Where an instance is kept."""
    return f"{_SLOT}one:{resource}:{identifier}"


def list_key(resource: str, whose: object) -> str:
    """Where the generation of a list is kept: everybody's, an owner's, or a parent's."""
    return f"{_SLOT}list:{resource}:{whose or 'all'}"


def _is_small(entry: Entry) -> bool:
    return len(entry.payload) <= MAX_ENTRY_BYTES


def _text(entry: Entry | None) -> bytes:
    return b"=%d:%b" % (entry.version, entry.payload) if entry is not None else b""


def _entry(text: bytes) -> Entry:
    version, _, payload = text[1:].partition(b":")
    return Entry(int(version), payload)
