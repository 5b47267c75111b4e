"""The faults: what may be broken, and in which order a seed breaks it. Whether it mattered: ``checker.py``.

A fault is begun, lasts, and is lifted. Everything about it is decided by the seed beforehand, but which of
several like processes it meets: those are chosen when it comes, by the fault's own number.
"""

import os
import random
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import psutil

from models.failpoints import Step, points
from tests.chaos import failover
from tests.chaos.arena import KINDS, SERVERS, Arena
from tests.chaos.ledger import connect
from tests.kit.faulty_link import Mode, Weather

Lift = Callable[[], None]
"""Ends a fault."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One that is planned.

    Attributes:
        kind: What is done: ``kill``, ``wipe``, ``crash``, or a link's mode.
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

    def begin(self, arena: Arena) -> Lift:
        """Break it."""
        return _BEGIN[self.kind](arena, self)


LINKS = (
    "client-api",
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
"""So many last longer than most time-outs."""


def schedule(seed: int, count: int, *, pairs: float = 0.25) -> list[list[Fault]]:
    """``count`` rounds of one fault, or two at once; the same for the same seed.

    Args:
        seed: Decides.
        count: Rounds.
        pairs: The share of rounds with two.

    Of five rounds two break processes or servers, two links, and one crashes at a failpoint. Within each of
    the three nothing comes twice before everything came once.
    """
    chance = random.Random(f"faults-{seed}")
    decks: list[list[tuple[str, str]]] = [[] for _ in _DECKS]
    rounds = []
    for place in range(count):
        which = _ORDER[place % len(_ORDER)]
        planned = [_drawn(decks, chance, which)]
        if chance.random() < pairs:
            second = _drawn(decks, chance, chance.choice(_ORDER))
            if second.target != planned[0].target:
                planned.append(second)
        rounds.append(planned)
    return rounds


def _drawn(decks: list[list[tuple[str, str]]], chance: random.Random, which: int) -> Fault:
    if not decks[which]:
        decks[which] = list(_DECKS[which])
        chance.shuffle(decks[which])
    kind, target = decks[which].pop()
    seconds = chance.uniform(8, 20) if chance.random() < _LONG_SHARE else chance.uniform(1, 5)
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
}


def begin_all(arena: Arena, faults: Sequence[Fault]) -> list[Lift]:
    """Begin a round."""
    return [fault.begin(arena) for fault in faults]
