"""The checker can fail: a sound run passes, and each planted breach of the promise is found by its rule."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.chaos.arena import Footprint
from tests.chaos.checker import RULES, check
from tests.chaos.evidence import Arrival, Call, Evidence
from tests.chaos.history import Line
from tests.chaos.ledger import Table, Transition
from tests.chaos.witness import Witnessed

ENTITY, OTHERS = "e-1", "e-2"
FEET = Footprint({"api": 100 << 20, "worker": 90 << 20}, {"api": 30, "worker": 30}, 20)


HERS = [
    Transition(1, "j-1", "u-ada", "queued"),
    Transition(2, "j-2", "u-ada", "queued"),
    Transition(10, "j-1", "u-ada", "succeeded"),
    Transition(20, "j-2", "u-ada", "succeeded"),
    Transition(60, "j-6", "u-ada", "cancelled"),
]


def sound() -> Evidence:
    """Ada creates an entity, appends twice, is refused once, does not know once, withdraws once, deletes."""
    lines: list[Line] = [
        invoke(0.0, 1, "create"),
        ok(0.1, 1),
        invoke(0.2, 2, "patch", callback=True),
        ok(0.3, 2),
        seen(0.45, 2, state="queued", done=False, sequence=2),
        seen(0.5, 2, version=2, nonces=["n-1", "n-2"]),
        invoke(0.6, 3, "patch", if_match=2),
        ok(0.7, 3),
        seen(0.8, 3, version=3, nonces=["n-1", "n-2", "n-3"]),
        read(0.9, version=3, nonces=["n-1", "n-2", "n-3"]),
        invoke(1.0, 4, "patch"),
        {"at": 1.1, "event": "fail", "op": 4, "status": 412},
        invoke(1.2, 5, "patch"),
        {"at": 1.3, "event": "unknown", "op": 5},
        invoke(1.4, 6, "patch", run_at=_moment(50)),
        ok(1.5, 6),
        {"at": 1.55, "event": "withdraw", "job": "j-6"},
        seen(1.6, 6, state="cancelled"),
        seen(1.9, 1, operation="create", version=1, nonces=["n-1"]),
        invoke(2.0, 7, "create", user="bob", entity=OTHERS),
        ok(2.1, 7),
        seen(2.2, 7, operation="create", user="bob", entity=OTHERS, version=1, nonces=["n-7"]),
        invoke(3.0, 8, "delete"),
        ok(3.1, 8),
        seen(3.2, 8, operation="delete"),
        {"at": 3.4, "since": 3.3, "event": "read", "user": "ada", "entity": ENTITY, "status": 404},
        {"at": 0.0, "event": "watching", "watch": 1, "user": "ada", "job": None, "after": 0},
        *(told(0.5, 1, one) for one in HERS),
        {"at": 3.5, "event": "watched", "watch": 1},
        {"at": 0.35, "event": "watching", "watch": 2, "user": "ada", "job": "j-2", "after": None},
        told(0.5, 2, HERS[-2]),
        {"at": 0.5, "event": "watched", "watch": 2},
    ]
    lines.append({"at": 3.5, "event": "confirmed", "op": 9, "message": "m-9"})
    testimonies = [
        Witnessed(1, ENTITY, "insert", ("n-1",), None, 1, "t1"),
        Witnessed(2, ENTITY, "update", ("n-2",), 1, 2, "t2"),
        Witnessed(3, ENTITY, "update", ("n-3", "n-5"), 2, 4, "t3"),
        Witnessed(4, OTHERS, "insert", ("n-7",), None, 1, "t4"),
        Witnessed(5, ENTITY, "delete", (), 4, 5, "t5"),
    ]
    arrivals = [
        Arrival("ada", "j-2", "msg-2", "succeeded", "d2", is_signed=True),
        Arrival("ada", "j-2", "msg-2", "succeeded", "d2", is_signed=True),
        Arrival("ada", "j-6", "msg-6", "cancelled", "d6", is_signed=True),
    ]
    return Evidence(
        lines,
        testimonies,
        arrivals,
        {"ada": "u-ada", "bob": "u-bob"},
        settled={"m-9"},
        shipments=["j-20", "j-21"],
        calls=[Call("j-20.ship", "d20"), Call("j-21.ship", "d21"), Call("j-21.ship", "d21")],
        transitions=[*HERS, Transition(70, "j-7", "u-bob", "succeeded")],
        tables={"jobs": Table(250 << 20, 100 << 20)},
        before=FEET,
        after=FEET,
    )


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def told(at: float, watch: int, one: Transition) -> Line:
    facts = {"sequence": one.sequence, "job": one.job, "state": one.state}
    return {"at": at, "event": "told", "watch": watch, "done": one.state != "queued", **facts}


def invoke(
    at: float, op: int, kind: str, user: str = "ada", entity: str = ENTITY, via: str = "http", **facts: Any
) -> Line:
    return {
        "at": at,
        "event": "invoke",
        "op": op,
        "kind": kind,
        "user": user,
        "entity": entity,
        "via": via,
        **facts,
    }


def ok(at: float, op: int) -> Line:
    return {"at": at, "event": "ok", "op": op, "job": f"j-{op}"}


def seen(
    at: float, op: int, *, state: str = "succeeded", done: bool = True, user: str = "ada", **facts: Any
) -> Line:
    return {
        "at": at,
        "since": at - 0.05,
        "event": "seen",
        "user": user,
        "job": f"j-{op}",
        "state": state,
        "done": done,
        "operation": "patch",
        "entity": ENTITY,
        "sequence": op * 10,
        "request": f"chaos-op-{op}",
        **facts,
    }


def read(at: float, *, version: int, nonces: list[str], **facts: Any) -> Line:
    return {
        "at": at,
        "since": at - 0.05,
        "event": "read",
        "user": "ada",
        "entity": ENTITY,
        "shown": ENTITY,
        "owner": "u-ada",
        "status": 200,
        "version": version,
        "nonces": nonces,
        **facts,
    }


def with_lines(*more: Line) -> Evidence:
    return replace(sound(), lines=sorted([*sound().lines, *more], key=lambda line: line["at"]))


def without_line(place: Callable[[Line], bool]) -> Evidence:
    return replace(sound(), lines=[line for line in sound().lines if not place(line)])


def with_testimonies(change: Callable[[list[Witnessed]], None]) -> Evidence:
    changed = list(sound().testimonies)
    change(changed)
    return replace(sound(), testimonies=changed)


def with_arrivals(change: Callable[[list[Arrival]], None]) -> Evidence:
    changed = list(sound().arrivals)
    change(changed)
    return replace(sound(), arrivals=changed)


def of_two(**facts: Any) -> Callable[[Line], Line]:
    """Operation 2 asks for more."""
    return lambda line: line | facts if line["event"] == "invoke" and line["op"] == 2 else line


def with_every(change: Callable[[Line], Line]) -> Evidence:
    return replace(sound(), lines=[change(line) for line in sound().lines])


def put(place: int, **facts: Any) -> Callable[[list[Any]], None]:
    def change(them: list[Any]) -> None:
        them[place] = replace(them[place], **facts)

    return change


def drop(place: int) -> Callable[[list[Any]], None]:
    return lambda them: them.pop(place)


def swapped(them: list[Witnessed]) -> None:
    """Operation 3 takes effect before operation 2, though it was asked after the answer."""
    them[1] = replace(them[1], nonces=("n-3",))
    them[2] = replace(them[2], nonces=("n-2", "n-5"))


PLANTED: dict[str, tuple[Evidence, str, str]] = {
    "applied twice": (
        with_testimonies(lambda them: them.append(Witnessed(6, ENTITY, "update", ("n-2",), 5, 6, "t"))),
        "effects",
        "took effect 2 times",
    ),
    "applied twice without a trace": (with_testimonies(put(1, version=3)), "effects", "2 versions by 1"),
    "lost": (with_testimonies(put(1, nonces=("n-99",))), "effects", "succeeded and had no effect"),
    "nobody asked": (with_testimonies(put(1, nonces=("n-99",))), "effects", "nobody asked"),
    "elsewhere": (with_testimonies(put(1, entity=OTHERS)), "effects", "on another entity"),
    "refused and applied": (
        with_testimonies(put(2, nonces=("n-3", "n-4"))),
        "effects",
        "was refused and took effect",
    ),
    "cancelled and applied": (
        with_testimonies(put(2, nonces=("n-3", "n-6"))),
        "effects",
        "did not succeed and took effect",
    ),
    "accepted and forgotten": (
        without_line(lambda line: line["event"] == "seen" and line["job"] == "j-3"),
        "effects",
        "was accepted and has no outcome",
    ),
    "innocent buried": (
        with_lines(seen(2.5, 3, state="dead")),
        "effects",
        "ended dead",
    ),
    "deleted twice": (
        with_testimonies(lambda them: them.append(Witnessed(6, ENTITY, "delete", (), 5, 6, "t"))),
        "effects",
        "deleted 2 times",
    ),
    "not deleted": (with_testimonies(drop(4)), "effects", "deleted 0 times"),
    "created twice": (
        with_testimonies(lambda them: them.insert(1, replace(them[0], n=2))),
        "effects",
        "created twice",
    ),
    "lost update": (with_testimonies(put(2, from_version=1)), "effects", "did not have"),
    "version starts anew": (
        with_testimonies(lambda them: them.append(Witnessed(6, ENTITY, "insert", ("n-9",), None, 1, "t"))),
        "effects",
        "came with version 1",
    ),
    "condition ignored": (
        with_lines(seen(2.5, 3, version=4, nonces=["n-1", "n-2", "n-3"])),
        "effects",
        "demanded version 2 and made 4",
    ),
    "one version twice": (
        with_lines(
            invoke(2.5, 9, "patch"), ok(2.6, 9), seen(2.7, 9, version=2, nonces=["n-1", "n-2", "n-9"])
        ),
        "effects",
        "both made version 2",
    ),
    "another version than the witness has": (
        with_lines(seen(2.5, 2, version=7, nonces=["n-1", "n-2"])),
        "effects",
        "the witness 2",
    ),
    "out of order": (with_testimonies(swapped), "order", "took effect after it"),
    "bulk out of order": (
        replace(
            sound(),
            lines=[
                line | {"bulk": "b"} if line["event"] == "invoke" and line["op"] in (2, 3) else line
                for line in sound().lines
                if line["event"] != "ok" or line["op"] != 2
            ],
            testimonies=with_testimonies(swapped).testimonies,
        ),
        "order",
        "stands behind 2 in a bulk",
    ),
    "open job": (replace(sound(), leftovers=["an open job: j-2"]), "rest", "open job"),
    "ledger at odds": (
        replace(sound(), ledger=["1 jobs that did not end exactly once"]),
        "rest",
        "exactly once",
    ),
    "final state changed": (with_lines(seen(2.5, 6, state="succeeded")), "finality", "was ('cancelled'"),
    "final state taken back": (
        with_lines(seen(2.5, 2, state="queued", done=False)),
        "finality",
        "was ('succeeded'",
    ),
    "outcome rewritten": (
        with_lines(seen(2.5, 2, version=2, nonces=["n-1"])),
        "finality",
        "j-2 was ('succeeded'",
    ),
    "redriven before it was asked": (
        with_lines(
            invoke(2.5, 9, "create", via="redriver", is_brittle=True),
            ok(2.6, 9),
            seen(2.7, 9, operation="create", state="dead"),
            seen(2.8, 9, operation="create", version=5, sequence=95),
            {"at": 2.9, "event": "redriving", "job": "j-9"},
        ),
        "finality",
        "was ('dead'",
    ),
    "redriven back in time": (
        with_lines(
            invoke(2.5, 9, "create", via="redriver", is_brittle=True),
            ok(2.6, 9),
            seen(2.7, 9, operation="create", state="dead"),
            {"at": 2.75, "event": "redriving", "job": "j-9"},
            seen(2.8, 9, operation="create", version=5, sequence=85),
        ),
        "finality",
        "was ('dead'",
    ),
    "end of a redriven one changed": (
        with_lines(
            invoke(2.5, 9, "create", via="redriver", is_brittle=True),
            ok(2.6, 9),
            seen(2.7, 9, operation="create", state="dead"),
            {"at": 2.75, "event": "redriving", "job": "j-9"},
            seen(2.8, 9, operation="create", version=5, sequence=95),
            seen(2.9, 9, operation="create", state="failed", sequence=99),
        ),
        "finality",
        "was ('succeeded'",
    ),
    "replied otherwise": (
        with_lines({"at": 2.5, "event": "replied", "op": 2, "job": "j-2", "state": "failed"}),
        "finality",
        "was replied as failed",
    ),
    "key became two jobs": (
        with_lines({"at": 2.5, "event": "replayed", "op": 2, "job": "j-9", "first": "j-2"}),
        "finality",
        "two jobs under one key",
    ),
    "job vanished": (
        with_lines({"at": 2.5, "event": "lost", "job": "j-2", "status": 404, "user": "ada"}),
        "finality",
        "is answered 404",
    ),
    "never announced": (
        replace(sound(), arrivals=sound().arrivals[2:]),
        "callbacks",
        "j-2 (succeeded, operation 2) was never",
    ),
    "subscription forgotten": (
        with_arrivals(drop(2)),
        "callbacks",
        "j-6 (cancelled, operation 6) was never",
    ),
    "two ids": (with_arrivals(put(1, webhook_id="msg-9")), "callbacks", "under 2 ids"),
    "two bodies": (with_arrivals(put(1, digest="other")), "callbacks", "2 bodies"),
    "not signed": (with_arrivals(put(1, is_signed=False)), "callbacks", "not signed"),
    "announced to another": (
        with_arrivals(put(2, user="bob")),
        "callbacks",
        "announced to somebody else",
    ),
    "announced otherwise": (with_arrivals(put(2, state="failed")), "callbacks", "announced as"),
    "announced unasked": (
        with_arrivals(
            lambda them: them.append(Arrival("ada", "j-3", "msg-3", "succeeded", "d3", is_signed=True))
        ),
        "callbacks",
        "nobody had asked",
    ),
    "message lost": (
        replace(sound(), settled={"m-8"}),
        "effects",
        "operation 9 was confirmed by the broker and never settled",
    ),
    "third party not told": (
        replace(sound(), calls=sound().calls[1:]),
        "calls",
        "j-20.ship never came",
    ),
    "third party told of nothing": (
        replace(sound(), shipments=["j-20"]),
        "calls",
        "j-21.ship came to the third party, and no success",
    ),
    "third party told otherwise": (
        replace(sound(), calls=[*sound().calls, Call("j-20.ship", "other")]),
        "calls",
        "with 2 bodies",
    ),
    "stale read": (
        with_lines(read(1.0, version=2, nonces=["n-1"])),
        "staleness",
        "shown at 3, and read at 2",
    ),
    "vanished read": (
        with_lines(
            {"at": 1.0, "since": 0.95, "event": "read", "user": "ada", "entity": ENTITY, "status": 404}
        ),
        "staleness",
        "not found",
    ),
    "told twice": (with_lines(told(3.45, 1, HERS[1])), "streams", "told 2 again or too late, after 60"),
    "told too little": (
        without_line(lambda line: line["event"] == "told" and line["watch"] == 1 and line["job"] == "j-2"),
        "streams",
        "was not told 2 transitions",
    ),
    "told nothing": (
        without_line(lambda line: line["event"] == "told"),
        "streams",
        "was not told 5 transitions",
    ),
    "told what never was": (
        with_lines(told(3.45, 1, Transition(80, "j-6", "u-ada", "succeeded"))),
        "streams",
        "which never was",
    ),
    "told after the end": (
        with_lines(told(0.6, 2, Transition(30, "j-2", "u-ada", "queued"))),
        "streams",
        "went on with job j-2 after its end",
    ),
    "told of another's": (
        with_lines(told(3.45, 1, Transition(70, "j-7", "u-bob", "succeeded"))),
        "streams",
        "which it is not about",
    ),
    "stream that ends early": (
        with_every(
            lambda line: (
                line | {"sequence": 2, "state": "queued", "done": False} if line.get("watch") == 2 else line
            )
        ),
        "streams",
        "ended before its job",
    ),
    "too early": (
        with_every(of_two(run_at=_moment(50))),
        "times",
        "took effect too early, by 50.000 s",
    ),
    "too late": (
        replace(
            with_testimonies(put(1, at=60.0)),
            lines=with_every(of_two(expires_at=_moment(50))).lines,
        ),
        "times",
        "took effect after it had expired, by 10.000 s",
    ),
    "expired too early": (
        with_lines(
            invoke(2.5, 9, "patch", lasts_until=_moment(50)),
            ok(2.6, 9),
            seen(2.7, 9, state="expired", finished=_moment(20)),
        ),
        "times",
        "expired too early, by 30.000 s",
    ),
    "expired without an end": (
        with_lines(invoke(2.5, 9, "patch"), ok(2.6, 9), seen(2.7, 9, state="expired")),
        "times",
        "was to last",
    ),
    "cancelled unasked": (
        without_line(lambda line: line["event"] == "withdraw"),
        "times",
        "nobody asked for that",
    ),
    "foreign entity": (
        with_lines({"at": 2.5, "event": "foreign", "user": "bob", "entity": ENTITY, "status": 200}),
        "privacy",
        "somebody else's",
    ),
    "foreign job": (
        with_lines(seen(2.5, 2, user="bob", version=2, nonces=["n-1", "n-2"])),
        "privacy",
        "bob was shown job",
    ),
    "answers mixed up": (
        with_lines(seen(2.5, 2, version=2, nonces=["n-1", "n-2"], asked="j-3")),
        "privacy",
        "asked for job j-3",
    ),
    "foreign data": (
        with_lines(read(2.5, version=4, nonces=["n-1", "n-7"])),
        "privacy",
        "never sent to it",
    ),
    "owner changed": (
        with_lines(read(2.5, version=4, nonces=["n-1"], owner="u-bob")),
        "privacy",
        "of somebody else",
    ),
    "memory": (
        replace(sound(), after=replace(FEET, memory={"api": 500 << 20, "worker": 90 << 20})),
        "footprint",
        "api grew",
    ),
    "descriptors": (
        replace(sound(), after=replace(FEET, files={"api": 30, "worker": 400})),
        "footprint",
        "400 descriptors",
    ),
    "connections": (
        replace(sound(), after=replace(FEET, database_connections=190)),
        "footprint",
        "connections went",
    ),
    "bloat": (
        replace(sound(), tables={"jobs": Table(400 << 20, 100 << 20)}),
        "footprint",
        "table jobs held 400 MiB, and needs 100",
    ),
}


def test_sound_run_passes() -> None:
    assert [str(one) for one in check(sound())] == []


def test_dead_job_may_be_redriven_and_succeed_then() -> None:
    made = Witnessed(6, "e-3", "insert", ("n-9",), None, 1, "t6")
    more = with_lines(
        invoke(2.5, 9, "create", entity="e-3", via="redriver", is_brittle=True),
        ok(2.6, 9),
        seen(2.7, 9, entity="e-3", operation="create", state="dead"),
        {"at": 2.75, "event": "redriving", "job": "j-9"},
        seen(2.8, 9, entity="e-3", operation="create", state="queued", done=False, sequence=93),
        seen(2.9, 9, entity="e-3", operation="create", version=1, sequence=95),
    )

    assert [str(one) for one in check(replace(more, testimonies=[*more.testimonies, made]))] == []


def test_unknown_operation_may_have_happened_or_not() -> None:
    without = with_testimonies(put(2, nonces=("n-3",), version=3))
    testimonies = [*without.testimonies[:-1], replace(without.testimonies[-1], from_version=3, version=4)]

    assert [str(one) for one in check(replace(without, testimonies=testimonies))] == []


def test_what_overlaps_may_take_effect_in_any_order() -> None:
    overlapping = [
        line | {"at": 0.25} if line["event"] == "invoke" and line["op"] == 3 else line
        for line in sound().lines
    ]
    evidence = replace(with_testimonies(swapped), lines=overlapping)

    assert [one for one in check(evidence) if one.rule == "order"] == []


@pytest.mark.parametrize(
    ("name", "begun", "healed", "shown", "is_excused"),
    [
        ("stop redis", -4.5, 0.9, 0.1, True),  # it has just come back
        ("stop redis", -4.5, -4.2, 0.1, False),
        ("stop redis", -4.5, 8.0, 0.1, True),  # for the moment that it takes to tell
        ("stop redis", -4.5, 8.0, 2.5, False),
        ("reset worker-redis", 0.0, 3.0, 0.1, True),
        ("reset worker-redis", 0.0, 3.0, 2.5, False),
        ("reset worker-redis + stop postgres", 0.0, 3.0, 2.5, True),
        ("delay api-redis", -4.5, 0.9, 0.1, False),
    ],
)
def test_old_reads_are_excused_only_where_the_readme_says_so(
    name: str, begun: float, healed: float, shown: float, is_excused: bool
) -> None:
    """Version 3 was shown at 0.8, and long ago at the latest 2 s after that."""
    evidence = with_lines(
        {"at": begun, "event": "fault", "name": name},
        {"at": healed, "event": "healed", "name": name},
        read(0.9 + shown, version=2, nonces=["n-1"]),
    )

    assert any(one.rule == "staleness" for one in check(evidence)) is not is_excused


def test_a_wipe_may_take_what_was_confirmed_before_it() -> None:
    wiped = [{"at": 3.4, "event": "fault", "name": "wipe rabbitmq"}, _healed_at(3.6)]

    assert check(replace(sound(), settled=(), lines=[*sound().lines, *wiped])) == []


@pytest.mark.parametrize(
    ("told_at", "full_at", "may_be_lost"), [(3.6, 3.8, True), (3.6, 3.55, False), (None, 3.8, False)]
)
def test_full_disk_of_the_broker_may_take_a_dead_letter_that_was_told_of(
    told_at: float | None, full_at: float, may_be_lost: bool
) -> None:
    full = {"at": full_at, "event": "healed", "name": "full rabbitmq + ahead worker"}
    refused = [] if told_at is None else [{"at": told_at, "event": "fail", "op": 9, "status": 404}]
    lines = [*sound().lines, invoke(3.45, 9, "patch"), *refused, full]

    assert (check(replace(sound(), settled=(), lines=lines)) == []) is may_be_lost


@pytest.mark.parametrize(("queue", "may_be_lost"), [("waybill.intake", True), ("waybill.jobs", False)])
def test_only_the_queues_of_the_intake_may_take_what_was_confirmed(queue: str, may_be_lost: bool) -> None:
    deleted = {"at": 3.6, "event": "deleted", "queues": [queue]}

    found = check(replace(sound(), settled=(), lines=[*sound().lines, deleted]))

    assert (found == []) is may_be_lost


def _healed_at(at: float) -> Line:
    return {"at": at, "event": "healed", "name": "wipe rabbitmq"}


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_breach_is_found_by_its_rule(bug: str) -> None:
    evidence, rule, words = PLANTED[bug]

    found = check(evidence)

    assert [one for one in found if one.rule == rule and words in one.text], [str(one) for one in found]


def test_every_rule_has_a_breach_that_it_finds() -> None:
    assert {rule for _, rule, _ in PLANTED.values()} == set(RULES)
