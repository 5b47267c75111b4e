"""The faults: what may be broken, and in which order a seed breaks it. Whether it mattered: ``checker.py``.

A fault is begun, lasts, and is lifted. Everything about it is decided by the seed beforehand, but which of
several like processes it meets: those are chosen when it comes, by the fault's own number.
"""

import os
import random
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import psutil
import psycopg
import redis
import urllib3

from deploy.postgres_server import PostgresServer
from models.failpoints import Step, points
from tests.chaos import failover
from tests.chaos.arena import APIS, KINDS, SERVERS, Arena
from tests.chaos.ledger import connect
from tests.kit.faulty_link import Mode, Weather
from tests.kit.upstream import ManagementApi
from tests.kit.waiting import wait_until

Lift = Callable[[], None]
"""Ends a fault."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One that is planned.

    Attributes:
        kind: What is done: ``kill``, ``wipe``, ``crash``, ``full``, ``ahead``, or a link's mode.
        target: To what: a kind of process, a server, a link, or a failpoint.
        seconds: How long it lasts; 0 of what is over at once, so that recovery counts from its begin.
        draw: A number of its own, for what is to be chosen when it comes.
    """

    kind: str
    target: str
    seconds: float
    draw: int

    def __str__(self) -> str:
        return f"{self.kind} {self.target}"

    def is_awaited(self, arena: Arena) -> bool:
        """Whether it is a crash, armed, to whose failpoint nobody has come yet."""
        return self.kind == CRASH and arena.is_armed(self.target)

    def lacking(self, arena: Arena) -> str | None:
        """What this machine has not got for it, in words; None: it can be had."""
        if self.kind in ("full", "full-wal", "scarce") and self.target != "redis" and not arena.disks:
            return "no tmpfs can be mounted, or it is a cluster"
        if self.kind in ("ahead", "behind") and not arena.clocks:
            return "clocks cannot be set: no C compiler, or not Linux with 64 bits"
        return None

    def begin(self, arena: Arena) -> Lift:
        """Break it."""
        return _BEGIN[self.kind](arena, self)


LINKS = (
    *(f"client-{name}" for name in APIS),
    *(f"{kind}-{server}" for kind in KINDS for server in ("postgres", "rabbitmq")),
    "api-redis",
    "worker-redis",
    "worker-receiver",
)
"""Consumers do not use Redis."""

CRASH = "crash"
"""Whoever next comes to a failpoint kills itself there; over once somebody has."""

MODES = tuple(mode for mode in Mode if mode is not Mode.PASS)

CATALOGUE: tuple[tuple[str, str], ...] = (
    *((str(mode), link) for mode in MODES for link in LINKS),
    *((kind, target) for kind in ("stop", "kill", "term") for target in ("api", "worker", "consumer")),
    ("stop", "pool"),
    ("kill", "pool"),
    ("kill", "whole-pool"),
    ("kill", "rabbitmq"),
    ("wipe", "rabbitmq"),
    ("stop", "rabbitmq"),
    ("kill", "redis"),
    ("stop", "redis"),
    ("kill", "postgres"),
    ("immediate", "postgres"),
    ("kill-backend", "postgres"),
    ("stop", "postgres"),
    *((CRASH, point) for point in points() if not point.endswith(Step.WITNESS)),
    ("full", "postgres"),
    ("full-wal", "postgres"),
    ("full", "rabbitmq"),
    ("full", "run"),
    ("scarce", "rabbitmq"),
    ("full", "redis"),
    *((kind, target) for kind in ("ahead", "behind") for target in KINDS),
)
"""All that there are: kind and target. But for crashes around a witness, to which nobody comes without a job
that kills its workers, and that is felt in the rounds after it."""

_DECKS = (
    tuple(one for one in CATALOGUE if one[0] not in (*MODES, CRASH)),
    tuple(one for one in CATALOGUE if one[0] in MODES),
    tuple(one for one in CATALOGUE if one[0] == CRASH),
)
_ORDER = (0, 1, 0, 1, 2)
"""From which deck each round is drawn, again and again."""

_LONG_SHARE = 0.15
"""So many rounds last longer than most time-outs."""


def schedule(seed: int, count: int, *, at_once: float = 1.25) -> list[list[Fault]]:
    """``count`` rounds of one fault, or more at once; the same for the same seed.

    Args:
        seed: Decides.
        count: Rounds.
        at_once: How many faults a round has on average, about: what two want to break, one gets.

    Of five rounds two break processes or servers, two links, and one crashes at a failpoint. Within each of
    the three nothing comes twice before everything came once.
    """
    chance = random.Random(f"faults-{seed}")
    decks: list[list[tuple[str, str]]] = [[] for _ in _DECKS]
    rounds = []
    for place in range(count):
        which = _ORDER[place % len(_ORDER)]
        is_long = chance.random() < _LONG_SHARE
        planned = [_drawn(decks, chance, which, is_long=is_long)]
        for _ in range(int(at_once - 1) + (chance.random() < at_once % 1)):
            further = _drawn(decks, chance, chance.choice(_ORDER), is_long=is_long)
            if all(further.target != one.target for one in planned):
                planned.append(further)
        rounds.append(planned)
    return rounds


def _drawn(decks: list[list[tuple[str, str]]], chance: random.Random, which: int, *, is_long: bool) -> Fault:
    if not decks[which]:
        decks[which] = list(_DECKS[which])
        chance.shuffle(decks[which])
    kind, target = decks[which].pop()
    seconds = chance.uniform(8, 20) if is_long else chance.uniform(1, 5)
    is_over_at_once = kind == "kill-backend" or (kind in ("kill", "term") and target not in SERVERS)
    return Fault(kind, target, 0.0 if is_over_at_once else round(seconds, 2), chance.getrandbits(32))


# ---- links -----------------------------------------------------------------------------------


def _weather(arena: Arena, fault: Fault) -> Lift:
    link = arena.links[fault.target]
    chance = random.Random(fault.draw)
    mode = Mode(fault.kind)
    seconds = {Mode.DELAY: chance.uniform(0.05, 0.6), Mode.TRICKLE: 0.02}.get(mode, 0.0)
    link.set(Weather(mode, seconds=seconds, after_bytes=chance.choice([0, 0, 40, 300, 3000]), piece=256))
    return link.heal


# ---- processes -------------------------------------------------------------------------------


def _victims(arena: Arena, fault: Fault) -> list[psutil.Process]:
    chance = random.Random(fault.draw)
    if fault.target in ("pool", "whole-pool"):
        pool = arena.pool()
        return pool if fault.target == "whole-pool" else [chance.choice(pool)] if pool else []
    if fault.target in KINDS:
        mains = arena.mains(fault.target)
        return [chance.choice(mains)] if mains else []
    pid = {"postgres": arena.postgres, "rabbitmq": arena.rabbitmq, "redis": arena.redis}[fault.target].pid
    if pid is None:  # it is down already; and ``psutil.Process(None)`` is ourselves
        return []
    with suppress(psutil.Error):
        main = psutil.Process(pid)
        return [main, *main.children(recursive=True)] if fault.target == "postgres" else [main]
    return []


def _signal(number: signal.Signals, arena: Arena, fault: Fault) -> Lift:
    """To our own: the supervisor starts again what ends."""
    for victim in _victims(arena, fault):
        with suppress(psutil.Error):
            victim.send_signal(number)
    return _nothing


def _stop(arena: Arena, fault: Fault) -> Lift:
    victims = _victims(arena, fault)

    def go_on() -> None:
        for victim in victims:
            with suppress(psutil.Error):
                victim.resume()

    for victim in victims:
        with suppress(psutil.Error):
            victim.suspend()
    return go_on


def _kill(arena: Arena, fault: Fault) -> Lift:
    if fault.target not in SERVERS:
        return _signal(signal.SIGKILL, arena, fault)
    for victim in _victims(arena, fault)[:1]:
        victim.kill()
    return partial(arena.restart, fault.target)


def _immediate(arena: Arena, fault: Fault) -> Lift:
    """PostgreSQL's immediate shutdown: no checkpoint, recovery at the next start."""
    for victim in _victims(arena, fault)[:1]:
        victim.send_signal(signal.SIGQUIT)
    return partial(arena.restart, "postgres")


def _kill_backend(arena: Arena, fault: Fault) -> Lift:
    """One session's process: PostgreSQL then throws out everybody and recovers by itself."""
    with suppress(Exception), connect(arena.postgres.url) as connection:
        rows = connection.execute(
            "SELECT pid FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND application_name LIKE 'waybill%'"
        ).fetchall()
        pids = sorted(int(str(row[0])) for row in rows)
        if pids:
            os.kill(random.Random(fault.draw).choice(pids), signal.SIGKILL)
    return _nothing


def _wipe(arena: Arena, fault: Fault) -> Lift:
    arena.rabbitmq.kill()
    return arena.wipe_rabbitmq


def _crash(arena: Arena, fault: Fault) -> Lift:
    arena.arm(fault.target)
    return partial(arena.disarm, fault.target)


# ---- disks -----------------------------------------------------------------------------------


def _full(arena: Arena, fault: Fault) -> Lift:
    """The server's disk, or that of our own files, while some of ours end and are started again.

    PostgreSQL, where it ended over it, is started again when there is room. RabbitMQ goes on without its
    quorum queues (seen with 3.10): as its operator has to, we start it again, and delete what it cannot
    restore.
    """
    if fault.target == "redis":
        return _full_redis(arena)
    disk = arena.disks[fault.target]
    disk.fill()
    if fault.target == "run":
        for kind in KINDS:
            _signal(signal.SIGKILL, arena, replace(fault, target=kind))
        return disk.free

    def free() -> None:
        disk.free()
        if fault.target == "rabbitmq":
            arena.rabbitmq.kill()
        arena.restart(fault.target)
        if fault.target == "rabbitmq":
            arena.delete_lost_queues()

    return free


_BELOW_THE_LIMIT = 20 * 1024**2
_ALARM_SECONDS = 15.0


def _scarce(arena: Arena, _: Fault) -> Lift:
    """So little is left of RabbitMQ's disk that it blocks whoever publishes (it looks every ten seconds)."""
    disk = arena.disks["rabbitmq"]
    disk.fill(leaving=_BELOW_THE_LIMIT)
    broker = ManagementApi(arena.rabbitmq.api_url)
    with suppress(
        AssertionError, urllib3.exceptions.HTTPError
    ):  # it is away, or slow: then it is not seen to be blocked
        wait_until(
            lambda: any(node.get("disk_free_alarm") for node in broker.call("GET", "/nodes")),
            timeout_seconds=_ALARM_SECONDS,
            every_seconds=0.5,
            what="the alarm",
        )
    return disk.free


def _full_wal(arena: Arena, fault: Fault) -> Lift:
    """The same, where PostgreSQL needs the room for its log: that it does not survive."""
    assert isinstance(arena.postgres, PostgresServer)
    lift = _full(arena, fault)
    # Segments that were used before are there to be used again.
    with suppress(psycopg.Error), psycopg.connect(arena.postgres.superuser_url, autocommit=True) as one:
        for _ in range(200):
            one.execute("SELECT pg_logical_emit_message(false, 'chaos', 'x'), pg_switch_wal()")
    return lift


def _full_redis(arena: Arena) -> Lift:
    """It has no disk, but memory: it goes on answering reads, and takes no writes."""

    def limit(bytes_: str, policy: str) -> None:
        with redis.Redis.from_url(arena.redis.url, socket_timeout=5) as client:
            client.config_set("maxmemory-policy", policy)
            client.config_set("maxmemory", bytes_)

    limit("1", "noeviction")
    return partial(limit, "64mb", "allkeys-lru")


# ---- clocks ----------------------------------------------------------------------------------

_OFF_BY_SECONDS = (90, 20 * 60, 3 * 3600, 30 * 3600)


def _clock(arena: Arena, fault: Fault) -> Lift:
    """A machine's: of one API, of the consumer, or of all workers."""
    chance = random.Random(fault.draw)
    names = sorted(name for name in arena.clocks if name.partition("-")[0] == fault.target)
    met = names if fault.target == "worker" else [chance.choice(names)]
    seconds = chance.choice(_OFF_BY_SECONDS) * (1 if fault.kind == "ahead" else -1)

    def set_all(offset: int) -> None:
        for name in met:
            arena.clocks[name].set(offset)

    set_all(seconds)
    return partial(set_all, 0)


def _nothing() -> None:
    """It is over by itself."""


_BEGIN: dict[str, Callable[[Arena, Fault], Lift]] = {
    **dict.fromkeys(map(str, MODES), _weather),
    "stop": _stop,
    "kill": _kill,
    "term": partial(_signal, signal.SIGTERM),
    "immediate": _immediate,
    "kill-backend": _kill_backend,
    "wipe": _wipe,
    CRASH: _crash,
    **failover.BEGIN,
    "full": _full,
    "full-wal": _full_wal,
    "scarce": _scarce,
    "ahead": _clock,
    "behind": _clock,
}


def begin_all(arena: Arena, faults: Sequence[Fault]) -> list[Lift]:
    """Begin a round."""
    return [fault.begin(arena) for fault in faults]
