"""The checker: reads what a run left behind, and says where the promise was broken. Pure; runs nothing.

::

    effects    accepted: exactly one effect, or a final refusal and none; unknown: at most one; refused: none
               what the broker confirmed of upstream's messages: a job or a dead letter
    order      what was answered before something else was asked took effect before it (one entity), and what
               stands first in a bulk
    rest       after healing no job is open, outbox and queues are empty, the ledger agrees with itself
    finality   a final state never changes, but a dead one by a redrive
    callbacks  each outcome that was asked for came, under one id, with one body, signed
    calls      each success with an effect on a third party came there, under one key, with one body; no other
    staleness  nothing is read that is older than what anybody had been shown before
    streams    who watched was told every transition, once and in order
    times      nothing takes effect or expires before its time, or after it
    privacy    no answer holds what is somebody else's, or another answer
    footprint  memory, descriptors and connections are about what they were
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tasks.names import DEAD_INTAKE, EXPIRED_INTAKE, INTAKE
from tests.chaos.crates import INSURE, SHIP
from tests.chaos.evidence import SUBSCRIBED, Evidence, Op
from tests.chaos.history import Line
from tests.chaos.staleness import staleness
from tests.chaos.streams import streams
from tests.chaos.times import times
from tests.chaos.witness import Witnessed

MEMORY_FACTOR, MEMORY_SLACK = 1.6, 128 * 1024 * 1024
FILES_FACTOR, FILES_SLACK = 1.5, 64
CONNECTIONS_SLACK = 40
"""The pools of ten processes may have grown to their size, and no further."""

BLOAT_FACTOR, BLOAT_SLACK = 3, 64 * 1024 * 1024
"""What vacuuming has not got to is to be had again; but not without bound."""

EVERYONE = "admin"
"""Who may see everybody's jobs."""


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that the promise excludes."""

    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.text}"


def check(evidence: Evidence) -> list[Violation]:
    """Every violation, rule by rule."""
    return [Violation(rule, text) for rule, find in RULES.items() for text in find(evidence)]


# ---- effects ---------------------------------------------------------------------------------


def _effects(evidence: Evidence) -> Iterator[str]:
    ops = evidence.operations()
    places: dict[str, list[Witnessed]] = defaultdict(list)
    deletions: Counter[str] = Counter()
    for one in evidence.testimonies:
        for nonce in one.nonces:
            places[nonce].append(one)
        deletions[one.entity] += one.action == "delete"
    for op in ops.values():
        if op.kind != "delete":
            yield from _effects_of(op, places.pop(op.nonce, []))
    for nonce in places:
        yield f"{nonce} took effect, and nobody asked for it"
    yield from _unsettled(evidence)
    yield from _deletions(ops, deletions)
    yield from _chains(evidence.testimonies)
    yield from _conditions(ops, evidence.testimonies)


def _effects_of(op: Op, places: Sequence[Witnessed]) -> Iterator[str]:
    name = f"operation {op.number} ({op.kind}, {op.outcome}, job {op.job}, {op.state})"
    if len(places) > 1:
        yield f"{name} took effect {len(places)} times"
    if any(one.entity != op.entity for one in places):
        yield f"{name} took effect on another entity"
    if op.outcome == "fail" and places:
        yield f"{name} was refused and took effect"
    if op.state == "succeeded" and not places:
        yield f"{name} succeeded and had no effect"
    if op.state not in (None, "succeeded") and places:
        yield f"{name} did not succeed and took effect"
    if op.outcome == "ok" and op.state is None:
        yield f"{name} was accepted and has no outcome"
    if op.state == "dead" and "is_brittle" not in op.facts:
        yield f"{name} ended dead, and nothing was wrong with it"


def _unsettled(evidence: Evidence) -> Iterator[str]:
    """Messages that the broker had, and that are neither jobs nor dead letters.

    A wipe may take them, and so may a queue that RabbitMQ could not restore. Where its disk was full, a dead
    letter may be missing from a queue that it did restore; who sent the message had been told by then.
    """
    wiped_at = max((one["at"] for one in evidence.lines if _takes_messages(one)), default=-1)
    full_at = max((one["at"] for one in evidence.lines if _is_healed(one, "full rabbitmq")), default=-1)
    told = {one["op"] for one in evidence.lines if one["event"] == "fail" and one["at"] < full_at}
    for line in evidence.lines:
        if line["event"] != "confirmed" or line["at"] <= wiped_at or line["op"] in told:
            continue
        if line["message"] not in evidence.settled:
            yield f"operation {line['op']} was confirmed by the broker and never settled"


def _takes_messages(line: Line) -> bool:
    if line["event"] == "deleted":
        return bool({INTAKE, EXPIRED_INTAKE, DEAD_INTAKE} & set(line["queues"]))
    return _is_healed(line, "wipe")


def _is_healed(line: Line, fault: str) -> bool:
    return line["event"] == "healed" and fault in line["name"]


def _deletions(ops: dict[int, Op], deletions: Counter[str]) -> Iterator[str]:
    certain: Counter[str] = Counter()
    possible: Counter[str] = Counter()
    for op in ops.values():
        if op.kind == "delete":
            if op.outcome == "ok" and op.state is None:
                yield f"operation {op.number} (delete) was accepted and has no outcome"
            certain[op.entity] += op.state == "succeeded"
            possible[op.entity] += op.state == "succeeded" or (op.state is None and op.outcome == "unknown")
    for entity in certain | deletions:
        if not certain[entity] <= deletions[entity] <= possible[entity]:
            yield (
                f"entity {entity} was deleted {deletions[entity]} times, "
                f"and {certain[entity]} deletions succeeded"
            )


def _chains(testimonies: Sequence[Witnessed]) -> Iterator[str]:
    """An entity's versions count its effects, without a gap; a re-created one goes on."""
    last: dict[str, Witnessed] = {}
    for one in testimonies:
        before = last.get(one.entity)
        last[one.entity] = one
        made = one.version - (one.from_version or 0)
        if one.action == "insert":
            floor = before.version if before is not None else 0
            if before is not None and before.action != "delete":
                yield f"entity {one.entity} was created twice (n {one.n})"
            elif one.version - len(one.nonces) < floor or (before is None and made != len(one.nonces)):
                yield (
                    f"entity {one.entity} came with version {one.version} "
                    f"by {len(one.nonces)} operations (n {one.n})"
                )
            continue
        if before is None or before.action == "delete" or before.version != one.from_version:
            if one.action == "update":
                yield f"entity {one.entity} was changed from a version that it did not have (n {one.n})"
            continue
        if one.action == "update" and made != len(one.nonces):
            yield f"entity {one.entity}: {made} versions by {len(one.nonces)} operations (n {one.n})"


def _conditions(ops: dict[int, Op], testimonies: Sequence[Witnessed]) -> Iterator[str]:
    """Of those that demanded a version, and succeeded, each found it; and no two the same."""
    made: dict[tuple[str, int], Op] = {}
    spans = {nonce: one for one in testimonies for nonce in one.nonces}
    for op in ops.values():
        if op.kind == "delete" or op.version is None or op.state != "succeeded":
            continue
        demanded = op.facts.get("if_match")
        if demanded is not None and op.version != demanded + 1:
            yield f"operation {op.number} demanded version {demanded} and made {op.version}"
        rival = made.setdefault((op.entity, op.version), op)
        if rival is not op:
            yield f"operations {rival.number} and {op.number} both made version {op.version} of {op.entity}"
        span = spans.get(op.nonce)
        if span is not None and not (span.version - len(span.nonces) < op.version <= span.version):
            yield f"operation {op.number} says that it made version {op.version}, the witness {span.version}"


# ---- order -----------------------------------------------------------------------------------


def _order(evidence: Evidence) -> Iterator[str]:
    placed: dict[str, Witnessed] = {}
    for one in evidence.testimonies:
        for nonce in one.nonces:
            placed.setdefault(nonce, one)
    by_entity: dict[str, list[Op]] = defaultdict(list)
    for op in evidence.operations().values():
        if op.nonce in placed and not op.is_later and op.kind != "delete":
            by_entity[op.entity].append(op)
    for ops in by_entity.values():
        yield from _order_in_bulks(ops, placed)
        answered = sorted((op for op in ops if op.answered is not None), key=lambda op: op.answered or 0)
        highest: list[Op] = []  # of the first so many answers, the one that took effect last
        for op in answered:
            is_later = not highest or _place(op, placed, 0) >= _place(highest[-1], placed, 0)
            highest.append(op if is_later else highest[-1])
        times = [op.answered or 0 for op in answered]
        for op in ops:
            before = bisect_left(times, op.invoked)
            if not before:
                continue
            rival = highest[before - 1]
            if _place(rival, placed, 0) > _place(op, placed, _UNSEEN):
                yield (
                    f"operation {rival.number} was answered at {rival.answered:.3f}, before operation "
                    f"{op.number} was asked at {op.invoked:.3f}, and took effect after it ({op.entity})"
                )


def _order_in_bulks(ops: Sequence[Op], placed: dict[str, Witnessed]) -> Iterator[str]:
    """A bulk is taken in in its order."""
    last: dict[str, Op] = {}
    for op in ops:
        bulk = op.facts.get("bulk")
        if bulk is not None:
            rival = last.get(bulk)
            if rival is not None and _place(rival, placed, 0) > _place(op, placed, _UNSEEN):
                yield f"operation {op.number} stands behind {rival.number} in a bulk and took effect first"
            last[bulk] = op


_UNSEEN = 2**63


def _place(op: Op, placed: dict[str, Witnessed], unseen: int) -> tuple[int, int]:
    """Where it took effect: the change, and in it the version (``unseen`` where nobody saw that)."""
    return placed[op.nonce].n, unseen if op.version is None else op.version


# ---- rest ------------------------------------------------------------------------------------


def _rest(evidence: Evidence) -> Iterator[str]:
    yield from evidence.leftovers
    yield from evidence.ledger


# ---- finality --------------------------------------------------------------------------------


def _finality(evidence: Evidence) -> Iterator[str]:
    final: dict[str, tuple[float, tuple[object, ...]]] = {}
    redriven: dict[str, float] = {}
    for line in evidence.lines:
        if line["event"] == "redriving":
            redriven.setdefault(line["job"], line["at"])
    for line in evidence.seen():
        facts = (line["state"], line["sequence"], line.get("version"), line.get("nonces"))
        known = final.get(line["job"])
        if known is None or _is_revived(known[1], line, redriven):
            if line["done"]:
                final[line["job"]] = (line["at"], facts)
        elif facts != known[1] and (line["done"] or line["since"] > known[0]):
            then, now = f"{known[0]:.3f}", f"{line['at']:.3f}"
            yield f"job {line['job']} was {known[1][:3]} at {then} and {facts[:3]} at {now}"
    for line in evidence.lines:
        if line["event"] == "replied" and line["job"] in final and final[line["job"]][1][0] != line["state"]:
            yield f"job {line['job']} was replied as {line['state']} and is {final[line['job']][1][0]}"
        if line["event"] == "replayed" and line["job"] != line["first"]:
            yield f"operation {line['op']} became two jobs under one key: {line['first']}, {line['job']}"
        if line["event"] == "lost":
            yield f"job {line['job']} was accepted and is answered {line['status']} at {line['at']:.3f}"


def _is_revived(known: tuple[object, ...], line: Line, redriven: Mapping[str, float]) -> bool:
    """Whether a job that was dead has moved on, after a redrive."""
    is_asked = redriven.get(line["job"], float("inf")) <= line["at"]
    return is_asked and known[0] == "dead" and line["sequence"] > int(str(known[1]))


# ---- callbacks -------------------------------------------------------------------------------


def _callbacks(evidence: Evidence) -> Iterator[str]:
    by_job = defaultdict(list)
    for one in evidence.arrivals:
        by_job[one.job].append(one)
        if not one.is_signed:
            yield f"callback {one.webhook_id} is not signed as it should be"
    jobs = {op.job: op for op in evidence.operations().values() if op.job is not None}
    for job, op in jobs.items():
        if op.user in evidence.users and op.state is not None and op.facts["via"] == "http":
            is_wanted = bool(op.facts.get("callback")) or op.state in SUBSCRIBED
            if is_wanted and job not in by_job:
                yield f"job {job} ({op.state}, operation {op.number}) was never announced"
            if not is_wanted and job in by_job:
                yield f"job {job} ({op.state}, operation {op.number}) was announced, and nobody had asked"
    for job, came in by_job.items():
        wanted = jobs.get(job)
        if len({one.webhook_id for one in came}) > 1:
            yield f"job {job} was announced under {len({one.webhook_id for one in came})} ids"
        if len({one.digest for one in came}) > 1:
            yield f"job {job} was announced with {len({one.digest for one in came})} bodies"
        if wanted is not None and any(one.user != wanted.user for one in came):
            yield f"job {job} of {wanted.user} was announced to somebody else"
        if wanted is not None and wanted.state and any(one.state != wanted.state for one in came):
            yield f"job {job} is {wanted.state} and was announced as {sorted({one.state for one in came})}"


# ---- calls -----------------------------------------------------------------------------------


def _calls(evidence: Evidence) -> Iterator[str]:
    wanted = {f"{job}.{SHIP}" for job in evidence.shipments}
    allowed = wanted | {f"{job}.{INSURE}" for job in evidence.shipments}
    bodies: dict[str, set[str]] = defaultdict(set)
    for call in evidence.calls:
        bodies[call.key].add(call.digest)
    for key in sorted(wanted - bodies.keys()):
        yield f"{key} never came to the third party"
    for key in sorted(bodies.keys() - allowed):
        yield f"{key} came to the third party, and no success was behind it"
    for key, sent in bodies.items():
        if len(sent) > 1:
            yield f"{key} came to the third party with {len(sent)} bodies"


# ---- privacy ---------------------------------------------------------------------------------


def _privacy(evidence: Evidence) -> Iterator[str]:
    ops = evidence.operations()
    owners = {op.entity: op.user for op in ops.values()}
    sown: dict[str, set[str]] = defaultdict(set)
    for op in ops.values():
        sown[op.entity].add(op.nonce)
    by_job = {op.job: op for op in ops.values() if op.job is not None}
    for line in evidence.lines:
        match line["event"]:
            case "foreign":
                yield f"{line['user']} read {line['entity']}, which is somebody else's"
            case "read" if "version" in line:
                if line["shown"] != line["entity"]:
                    yield f"asked for entity {line['entity']}, {line['user']} was shown {line['shown']}"
                if (
                    line["owner"] != evidence.users.get(line["user"])
                    or owners.get(line["shown"]) != line["user"]
                ):
                    yield f"{line['user']} was shown entity {line['shown']} of somebody else"
                if not set(line["nonces"]) <= sown[line["shown"]]:
                    yield f"entity {line['shown']} was shown with what was never sent to it"
            case "seen":
                if line.get("asked", line["job"]) != line["job"]:
                    yield f"asked for job {line['asked']}, {line['user']} was shown {line['job']}"
                if line["user"] != EVERYONE and owners.get(line["entity"]) != line["user"]:
                    yield f"{line['user']} was shown job {line['job']} of somebody else"
                asked = by_job.get(line["job"])
                if asked and (asked.entity, asked.kind) != (line["entity"], line["operation"]):
                    yield f"job {line['job']} is shown as another operation than {asked.number}"
                if not set(line.get("nonces", ())) <= sown[line["entity"]]:
                    yield f"job {line['job']} was shown with a result that is not its entity's"


# ---- footprint -------------------------------------------------------------------------------


def _footprint(evidence: Evidence) -> Iterator[str]:
    for name, table in evidence.tables.items():
        if table.held > table.needed * BLOAT_FACTOR + BLOAT_SLACK:
            yield f"table {name} held {table.held >> 20} MiB, and needs {table.needed >> 20}"
    before, after = evidence.before, evidence.after
    if before is None or after is None:
        return
    for kind, memory in before.memory.items():
        if after.memory.get(kind, 0) > memory * MEMORY_FACTOR + MEMORY_SLACK:
            yield f"{kind} grew from {memory >> 20} to {after.memory[kind] >> 20} MiB"
        if after.files.get(kind, 0) > before.files[kind] * FILES_FACTOR + FILES_SLACK:
            yield f"{kind} went from {before.files[kind]} to {after.files[kind]} descriptors"
    if after.database_connections > before.database_connections + CONNECTIONS_SLACK:
        yield f"database connections went from {before.database_connections} to {after.database_connections}"


RULES: dict[str, Callable[[Evidence], Iterator[str]]] = {
    "effects": _effects,
    "order": _order,
    "rest": _rest,
    "finality": _finality,
    "callbacks": _callbacks,
    "calls": _calls,
    "staleness": staleness,
    "streams": streams,
    "times": times,
    "privacy": _privacy,
    "footprint": _footprint,
}
