"""A run from the first client to the last verdict: workload on, faults in turn, healing, rest, judgement."""

import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from tests.chaos import faults, ledger, witness
from tests.chaos.actor import Actor
from tests.chaos.arena import ADMIN, PASSWORD, Arena, Footprint, running_arena
from tests.chaos.broker import dead_letters, full_queues
from tests.chaos.canary import PATIENCE_SECONDS, Canary
from tests.chaos.checker import EVERYONE, Violation, check
from tests.chaos.crowd import Crowd
from tests.chaos.evidence import SUBSCRIBED, Evidence, arrivals, calls
from tests.chaos.garden import Garden
from tests.chaos.history import History, kept
from tests.chaos.provoker import Provoker
from tests.chaos.redriver import Redriver
from tests.chaos.sessions import Sessions
from tests.chaos.stopwatch import Pace, Stopwatch
from tests.chaos.upstream import UpstreamSystem
from tests.chaos.user import User
from tests.chaos.watcher import EventWatcher, StreamWatcher, Watcher
from tests.chaos.wire import Wire
from tests.chaos.workload import Worker
from tests.kit.client import Client
from tests.kit.receiver import Behaviour, Exchange, WebhookReceiver, answer
from tests.kit.upstream import ManagementApi
from tests.kit.waiting import wait_until

WARM_UP_SECONDS = 4.0
_HASTEN_EVERY_SECONDS = 8.0
_READY_SECONDS = 30.0
_USERS = ("ada", "bob")

_Watcher = TypeVar("_Watcher", bound=Watcher)
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done.

    Attributes:
        seconds: From the first fault to the last, about: slow recoveries make it longer.
        seed: Decides faults, and what each client draws.
        rate: Acts a second, of all HTTP clients together.
        rounds: The faults, one or two at once.
        bugs: Of ``bugs.py`` to be planted, comma-separated; empty: none.
        rest_seconds: What is not at rest by then never is. (Claims of the dead last 60 s, retries some more.)
        clients: HTTP clients of each user.
        reads: The share of their acts that only look.
        is_hurried: A round is over once its crashes have come, and the next one begins without waiting for
            recovery.
        arena: Where.
    """

    seconds: float
    seed: int
    rate: float
    rounds: Sequence[Sequence[faults.Fault]]
    bugs: str = ""
    rest_seconds: float = 300.0
    clients: int = 4
    reads: float = 0.3
    is_hurried: bool = False
    arena: type[Arena] = Arena


@dataclass(frozen=True, slots=True)
class Result:
    """How it went.

    Attributes:
        recoveries: Seconds from the lifting of a fault until a new job succeeded, by fault.
        states: Jobs by the state in which they ended.
        outcomes: Operations by what their clients were told.
        callbacks: Arrived.
        changes: That the witness saw.
        rest_seconds: From the last fault until nothing was left to be done.
        requests: That were timed.
        rate: Requests a second, timed or not.
        pace: Of those that met no fault; None where all did.
        memory: Resident bytes by kind of process, the largest of its processes: at the first fault, at the
            highest in each quarter of the run, and at rest.
        tables: What each takes, by name.
        deleted_queues: Those that RabbitMQ could not restore after its disk was full.
        crashed: Failpoints at which somebody crashed, and after how many seconds; at the last time.
        unreached: Failpoints to which nobody came in their time.
    """

    violations: Sequence[Violation]
    recoveries: dict[str, list[float]]
    states: Counter[str]
    outcomes: Counter[str]
    callbacks: int
    changes: int
    rest_seconds: float
    requests: int
    rate: float
    pace: Pace | None
    memory: Mapping[str, Sequence[int]]
    tables: Mapping[str, ledger.Table] = field(default_factory=dict)
    deleted_queues: Sequence[str] = ()
    crashed: Mapping[str, float] = field(default_factory=dict)
    unreached: Sequence[str] = ()


def run(plan: Plan, folder: Path, say: Say = lambda _: None) -> Result:
    """Run a plan.

    Args:
        plan: What.
        folder: Receives ``history.jsonl``, ``platform.log`` and ``violations.txt``.
        say: Receives what happens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    say(f"starting a platform of its own; seed {plan.seed}, {len(plan.rounds)} rounds of faults")
    with (
        kept(folder / "history.jsonl") as history,
        WebhookReceiver() as receiver,
        running_arena(
            folder / "platform.log", receiver_port=receiver.port, bugs=plan.bugs, kind=plan.arena
        ) as arena,
    ):
        receiver.will_always(_moody(random.Random(f"receiver-{plan.seed}")))
        result = Run(plan, arena, history, receiver, say).result()
    (folder / "violations.txt").write_text("".join(f"{one}\n" for one in result.violations))
    return result


class Run:
    """One run on a running arena.

    Args:
        plan: What is to be done.
        arena: Fresh.
        history: Fresh.
        receiver: Takes the callbacks.
        say: Receives what happens.
    """

    def __init__(
        self, plan: Plan, arena: Arena, history: History, receiver: WebhookReceiver, say: Say
    ) -> None:
        self._plan = plan
        self._arena = arena
        self._history = history
        self._receiver = receiver
        self._say = say
        self._garden = Garden()
        self._recoveries: dict[str, list[float]] = defaultdict(list)
        self._leftovers: list[str] = []
        self._stopwatch = Stopwatch()
        self._footprints: list[Footprint] = []
        self._crashed: dict[str, float] = {}
        self._unreached: list[str] = []
        self._streams: list[StreamWatcher] = []
        self._users = _furnish(arena)
        self._sessions = Sessions()
        self._canary = Canary(arena.direct_urls, self._users[0], self._sessions, history)
        # Those who look at the end: not through the clients' links, which they would only wait for.
        self._lookers = [self._worker(arena.direct_urls, user, random.Random(0)) for user in self._users]
        self._provoker = Provoker(arena, self._lookers[1], self._users[0], self._users[1])

    def result(self) -> Result:
        """Do it all, and judge."""
        chance = random.Random(f"workload-{self._plan.seed}")
        clients = [user for user in self._users if user.name in _USERS] * self._plan.clients
        workers = [
            self._worker(self._arena.urls, one, random.Random(chance.random()), self._stopwatch)
            for one in clients
        ]
        crowd = Crowd(workers, self._plan.rate, chance)
        upstream = UpstreamSystem(
            self._arena.rabbitmq.url, EVERYONE, self._history, random.Random(chance.random()), rate=3
        )
        self._streams = [self._watcher(StreamWatcher, user, chance) for user in self._users]
        watchers = [*self._streams, *(self._watcher(EventWatcher, user, chance) for user in self._users)]
        own = random.Random(chance.random())
        redriver = Redriver(self._arena.urls, self._users[0], self._sessions, self._history, own)
        busy: list[Crowd | Actor] = [crowd, upstream, redriver, *watchers]
        for one in busy:
            one.start()
        time.sleep(WARM_UP_SECONDS)
        before = self._arena.footprint()
        try:
            self._break_everything()
        finally:
            self._arena.heal()
            for one in busy:
                one.stop()
        self._provoker.tidy()
        self._say("healed; waiting for rest")
        rest_seconds = self._await_rest()
        self._say(f"at rest after {rest_seconds:.0f} s; looking everything over")
        with ThreadPoolExecutor() as threads:
            list(threads.map(lambda looker: looker.collect(), self._lookers))
            list(threads.map(lambda stream: stream.catch_up(self._arena.direct_urls[0]), self._streams))
        return self._judged(before, rest_seconds)

    def _break_everything(self) -> None:
        pause = self._plan.seconds / max(len(self._plan.rounds), 1)
        began = time.monotonic()
        for place, given in enumerate(self._plan.rounds):
            time.sleep(max(began + place * pause - time.monotonic(), 0 if self._plan.is_hurried else 0.3))
            planned = self._possible(given)
            if not planned:
                continue
            name = " + ".join(map(str, planned))
            self._history.add("fault", name=name, seconds=[one.seconds for one in planned])
            lifts = faults.begin_all(self._arena, planned)
            self._last(planned)
            known = len(self._arena.deleted_queues)
            for lift in lifts:
                lift()
            self._history.add("healed", name=name)
            if deleted := self._arena.deleted_queues[known:]:
                self._history.add("deleted", queues=deleted)
            if self._plan.is_hurried and place + 1 < len(self._plan.rounds):
                self._say(f"{place + 1}/{len(self._plan.rounds)} {name}")
                self._clear_weather(planned)
                continue
            took = self._canary.sings_after()
            self._footprints.append(self._arena.footprint())
            self._say(
                f"{place + 1}/{len(self._plan.rounds)} {name}: "
                + ("did not recover" if took is None else f"recovered in {took:.1f} s")
            )
            if took is None:
                self._leftovers.append(f"no job succeeded within {PATIENCE_SECONDS:.0f} s after {name}")
            else:
                for one in planned:
                    self._recoveries[str(one)].append(took)
        time.sleep(max(began + self._plan.seconds - time.monotonic(), 0))

    def _last(self, planned: Sequence[faults.Fault]) -> None:
        """Let a round last, and bring somebody to the failpoints where crashes are planned."""
        began = time.monotonic()
        until = began + max(one.seconds for one in planned)
        awaited = [one for one in planned if one.kind == faults.CRASH]
        while (left := until - time.monotonic()) > 0:
            for one in list(awaited):
                if one.is_awaited(self._arena):
                    self._provoker.provoke(one.target)
                else:
                    awaited.remove(one)
                    self._crashed[one.target] = time.monotonic() - began
            if self._plan.is_hurried and not awaited:
                break
            time.sleep(min(0.1 if awaited else left, left))
        self._unreached += [one.target for one in awaited]
        self._provoker.let_go()

    def _clear_weather(self, planned: Sequence[faults.Fault]) -> None:
        """Have what other faults than crashes put off be done at once."""
        if any(one.kind != faults.CRASH for one in planned):
            ledger.hasten(self._arena.postgres.url)

    def _possible(self, given: Sequence[faults.Fault]) -> list[faults.Fault]:
        """Those for which this machine has the means; of the others it is said that they are left out."""
        lacking = {one: one.lacking(self._arena) for one in given}
        for one, what in lacking.items():
            if what is not None:
                self._say(f"LEFT OUT {one}: {what}")
        return [one for one in given if lacking[one] is None]

    def _await_rest(self) -> float:
        """Wait until nothing is left to be done; what is then still left is put down."""
        url = self._arena.postgres.url
        broker = ManagementApi(self._arena.rabbitmq.api_url)
        began = hastened = time.monotonic()
        while left := [*ledger.open_work(url), *full_queues(broker)]:
            now = time.monotonic()
            if now - began > self._plan.rest_seconds:
                self._leftovers += left
                break
            if now - hastened > _HASTEN_EVERY_SECONDS:
                hastened = now
                ledger.hasten(url)
            time.sleep(1)
        return time.monotonic() - began

    def _judged(self, before: Footprint, rest_seconds: float) -> Result:
        url = self._arena.postgres.url
        try:
            wait_until(self._arena.is_ready, timeout_seconds=_READY_SECONDS, every_seconds=0.5, what="ready")
        except AssertionError:
            self._leftovers.append("the platform does not say that it is ready")
        after = self._arena.footprint()
        evidence = Evidence(
            lines=self._history.lines,
            testimonies=witness.testimonies(url),
            transitions=ledger.transitions(url),
            arrivals=arrivals(self._receiver.requests, {user.name: user.secret for user in self._users}),
            users={user.name: user.id for user in self._users},
            leftovers=self._leftovers,
            ledger=list(ledger.violations(url, ledger.RULES)),
            settled=ledger.upstream_keys(url) | dead_letters(self._arena.rabbitmq.url),
            shipments=ledger.shipments(url),
            calls=calls(self._receiver.requests),
            tables=ledger.tables(url),
            before=before,
            after=after,
        )
        ops = evidence.operations().values()
        return Result(
            violations=check(evidence),
            recoveries=dict(self._recoveries),
            states=Counter(ledger.states(url)),
            outcomes=Counter(op.outcome for op in ops),
            callbacks=len(evidence.arrivals),
            changes=len(evidence.testimonies),
            rest_seconds=rest_seconds,
            requests=self._stopwatch.requests,
            rate=self._stopwatch.rate,
            pace=self._stopwatch.pace(self._history.lines),
            memory=_by_quarter([before, *self._footprints, after]),
            tables=evidence.tables,
            deleted_queues=self._arena.deleted_queues,
            crashed=self._crashed,
            unreached=self._unreached,
        )

    def _watcher(self, kind: type[_Watcher], user: User, chance: random.Random) -> _Watcher:
        own = random.Random(chance.random())
        return kind(self._arena.urls, user, self._sessions, self._history, self._garden, own)

    def _worker(
        self, urls: Sequence[str], user: User, chance: random.Random, stopwatch: Stopwatch | None = None
    ) -> Worker:
        others = [one for one in self._users if one.name in _USERS and one.name != user.name]
        wire = Wire(urls, user, self._sessions, self._history, chance, stopwatch)
        return Worker(wire, user, self._history, self._garden, chance, others, self._plan.reads)


def _by_quarter(footprints: Sequence[Footprint]) -> dict[str, list[int]]:
    """Resident memory: the first, the highest in each quarter of the others, and the last."""
    first, *between, last = footprints
    cuts = [len(between) * place // 4 for place in range(5)]
    quarters = [between[begin:end] for begin, end in pairwise(cuts) if begin < end]
    return {
        kind: [
            first.memory[kind],
            *(max(one.memory.get(kind, 0) for one in quarter) for quarter in quarters),
            last.memory.get(kind, 0),
        ]
        for kind in first.memory
    }


def _furnish(arena: Arena) -> list[User]:
    """The users, each with a callback endpoint; and the admin, who may see every job and has none."""
    admin = Client(arena.direct_urls[0])
    token = admin.log_in(ADMIN, PASSWORD)
    known = {one["email"]: one["id"] for one in admin.call("GET", "users").json["items"]}
    found = [User(EVERYONE, ADMIN, PASSWORD, known[ADMIN], token=token)]
    for name in _USERS:
        email = f"{name}@example.org"
        made = admin.outcome("POST", "users", {"email": email, "password": PASSWORD, "role": "user"})
        assert made.status == 201, made.body
        client = Client(admin.url)
        token = client.log_in(email, PASSWORD)
        url = f"http://127.0.0.1:{arena.links['worker-receiver'].port}/{name}"
        wanted = [f"job.{state}" for state in sorted(SUBSCRIBED)]
        endpoint = client.call("POST", "callback-endpoints", {"url": url, "events": wanted})
        assert endpoint.status == 201, endpoint.body
        found.append(
            User(name, email, PASSWORD, made.json["id"], endpoint.json["id"], endpoint.json["secret"], token)
        )
    return found


def _moody(chance: random.Random) -> Behaviour:
    """A receiver that mostly works."""
    lock = threading.Lock()

    def behave(exchange: Exchange) -> None:
        with lock:
            mood = chance.random()
        if mood < 0.02:
            exchange.reset()
        elif mood < 0.05:
            answer(503)(exchange)
        else:
            answer(204, delay_seconds=0.3 if mood < 0.08 else 0)(exchange)

    return behave
