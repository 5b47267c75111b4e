"""The intake loop without a broker: what happens in which order, and what is held, retried or isolated."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID

import pytest

from consumers.desk import Desk
from consumers.envelope import Arrival
from consumers.intake import IntakeLoop
from consumers.link import Link
from consumers.publisher import Outgoing, Publisher
from models.capacity import Capacity
from models.errors import BrokerUnavailable, Contention, DatabaseUnavailable, Invalid, Unavailable
from models.identity.principals import Principal, Role
from models.ids import new_id
from models.intake import Answer, Intake, KeyedRequest, Receipt
from models.job import Door, Job, JobState, Operation, Priority, Submission
from tests.kit.waiting import wait_until

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WHO = Principal(new_id(), "a@b.c", Role.ADMIN)


def arrival(tag: int, message_id: str = "", *, is_redelivered: bool = False) -> Arrival:
    return Arrival(
        routing_key="entities.create",
        body=b"{}",
        properties={"message_id": message_id or f"message-{tag}", "reply_to": "replies"},
        headers={},
        arrived_at=NOW,
        delivery_tag=tag,
        is_redelivered=is_redelivered,
    )


class ScriptedLink:
    """Gives its batches, then waits to be stopped; remembers what was acknowledged."""

    def __init__(
        self, batches: Sequence[Sequence[Arrival]], told: list[Any], stopping: threading.Event
    ) -> None:
        self._batches = [list(batch) for batch in batches]
        self._told = told
        self._stopping = stopping
        self.heartbeats = 0
        self.is_lost = False

    def take(self, limit: int, wait_seconds: float) -> list[Arrival]:
        if self._batches:
            return self._batches.pop(0)
        self._stopping.set()
        return []

    def keep_alive(self) -> None:
        self.heartbeats += 1
        if self.is_lost:
            raise ConnectionResetError

    def acknowledge(self, arrivals: list[Arrival]) -> None:
        self._told.append(("ack", arrivals[-1].delivery_tag))

    def close(self) -> None:
        self._told.append(("closed",))


class ScriptedPublisher:
    """Fails as often as it is told to, then remembers what it was given."""

    def __init__(self, told: list[Any], failures: int = 0) -> None:
        self._told = told
        self._failures = failures

    def confirmed(self, messages: Sequence[Outgoing]) -> None:
        if self._failures:
            self._failures -= 1
            raise BrokerUnavailable("not now")
        self._told.append(("letters", [one.properties["message_id"] for one in messages]))

    def best_effort(self, messages: Sequence[Outgoing]) -> bool:
        self._told.append(("replies", [one.properties["type"] for one in messages]))
        return False

    def keep_alive(self) -> None: ...

    def close(self) -> None: ...


class ScriptedDesk:
    """Refuses what is called ``bad``, breaks on what is called ``bug``."""

    def submission(self, one: Arrival) -> Submission:
        name = str(one.properties["message_id"])
        if name.startswith("bad"):
            raise Invalid("no good")
        if name.startswith("bug"):
            raise ZeroDivisionError
        identifier = new_id()
        return Submission(
            job_id=identifier,
            operation=Operation.CREATE,
            resource="entities",
            resource_id=identifier,
            lane=1,
            principal=WHO,
            door=Door.AMQP,
            request_id=name,
            idempotency_key=name,
        )

    def request(self, one: Arrival) -> KeyedRequest:
        name = str(one.properties["message_id"])
        if name.startswith("bug"):
            raise ZeroDivisionError
        return KeyedRequest(WHO.id, Door.AMQP, name, b"")


class ScriptedIntake:
    """Accepts, after the failures that it is told; breaks on a batch with ``poison``."""

    def __init__(
        self,
        failures: Sequence[Exception] = (),
        state: JobState = JobState.QUEUED,
        recall_failures: Sequence[Exception] = (),
    ) -> None:
        self._failures = list(failures)
        self._recall_failures = list(recall_failures)
        self._state = state
        self.replayed: set[str] = set()

    def accept(self, batch: Sequence[Submission]) -> list[Answer]:
        if self._failures:
            raise self._failures.pop(0)
        if any(one.idempotency_key == "poison" for one in batch):
            raise ZeroDivisionError
        return [Receipt(_job(one, self._state), one.request_id in self.replayed) for one in batch]

    def recall(self, requests: Sequence[KeyedRequest]) -> list[Receipt | None]:
        if self._recall_failures:
            raise self._recall_failures.pop(0)
        done = ScriptedDesk().submission(arrival(0, "earlier"))
        return [
            Receipt(_job(done, self._state), True) if one.key in self.replayed else None for one in requests
        ]


class ScriptedCapacity:
    """Is full as often as it is told to be."""

    rest_seconds = 0.0

    def __init__(self, refusals: int = 0) -> None:
        self._refusals = refusals

    def read(self) -> None: ...

    def admit(self, priority: Priority, more: int) -> None:
        if self._refusals:
            self._refusals -= 1
            raise Unavailable("Too many jobs are open", retry_after=1)


def _job(one: Submission, state: JobState) -> Job:
    return Job(
        id=one.job_id,
        state=state,
        operation=one.operation,
        resource=one.resource,
        resource_id=one.resource_id,
        principal_id=WHO.id,
        attempt=0,
        priority=Priority.NORMAL,
        created_at=NOW,
        run_at=None,
        finished_at=None,
        expires_at=None,
        version=None,
        result=None,
        error=None,
        request_id=one.request_id,
        sequence=1,
    )


class Bench:
    """A loop among scripted neighbours; ``told`` is what they heard, in order."""

    def __init__(
        self,
        *batches: Sequence[Arrival],
        intake: ScriptedIntake | None = None,
        capacity: "ScriptedCapacity | None" = None,
        letter_failures: int = 0,
    ) -> None:
        self.told: list[Any] = []
        self.stopping = threading.Event()
        self.link = ScriptedLink(batches, self.told, self.stopping)
        self.loop = IntakeLoop(
            desk=cast(Desk, ScriptedDesk()),
            intake=cast(Intake, intake or ScriptedIntake()),
            capacity=cast(Capacity, capacity or ScriptedCapacity()),
            announcer=self,
            open_link=self.open_link,
            publisher=cast(Publisher, ScriptedPublisher(self.told, letter_failures)),
            stopping=self.stopping,
            log=logging.getLogger("waybill.intake"),
        )
        self.open_link_fault: Callable[[], None] = lambda: None

    def open_link(self) -> Link:
        self.open_link_fault()
        return cast(Link, self.link)

    def jobs(self, accepted: Mapping[Priority, Sequence[UUID]]) -> None:
        self.told.append(("announced", sum(len(ids) for ids in accepted.values())))

    def run(self) -> list[Any]:
        self.loop.run()
        return [one for one in self.told if one != ("closed",)]


def test_letters_come_before_replies_before_the_announcement_before_the_ack() -> None:
    told = Bench([arrival(1), arrival(2, "bad-2"), arrival(3)]).run()

    assert told == [
        ("letters", ["bad-2"]),
        ("replies", ["job.accepted", "job.rejected", "job.accepted"]),
        ("announced", 2),
        ("ack", 3),
    ]


@pytest.mark.parametrize("name", ["bug", "poison"])
def test_message_that_breaks_our_code_harms_no_neighbour(name: str) -> None:
    told = Bench([arrival(1), arrival(2, name), arrival(3)]).run()

    assert told == [
        ("letters", [name]),
        ("replies", ["job.accepted", "job.rejected", "job.accepted"]),
        ("announced", 2),
        ("ack", 3),
    ]


def test_replays_and_scheduled_jobs_are_not_announced() -> None:
    replaying = ScriptedIntake()
    replaying.replayed = {"message-1"}

    assert ("announced", 1) in Bench([arrival(1), arrival(2)], intake=replaying).run()
    scheduling = ScriptedIntake(state=JobState.SCHEDULED)
    assert ("announced", 0) in Bench([arrival(1)], intake=scheduling).run()


def test_refused_message_that_comes_again_is_the_job_that_it_became() -> None:
    intake = ScriptedIntake(recall_failures=[DatabaseUnavailable("away")])
    intake.replayed = {"bad-1", "bad-2"}
    batch = [arrival(tag, f"bad-{tag}", is_redelivered=tag > 1) for tag in (1, 2, 3)]

    assert Bench(batch, intake=intake).run() == [
        ("letters", ["bad-1", "bad-3"]),
        ("replies", ["job.rejected", "job.accepted", "job.rejected"]),
        ("announced", 0),
        ("ack", 3),
    ]


def test_message_that_breaks_our_code_again_and_again_harms_no_neighbour() -> None:
    told = Bench([arrival(1, "bug", is_redelivered=True), arrival(2)]).run()

    assert told[-1] == ("ack", 2)
    assert ("letters", ["bug"]) in told


@pytest.mark.parametrize("fault", [DatabaseUnavailable("away"), Contention("deadlock")])
def test_batch_is_held_and_judged_again_while_the_database_is_away(
    fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench([arrival(1)], [arrival(2)], intake=ScriptedIntake([fault, fault]))

    assert [one for one in bench.run() if one[0] == "ack"] == [("ack", 1), ("ack", 2)]
    assert bench.link.heartbeats > 0
    assert caplog.text.count("holding messages") == 1


def test_batch_is_held_and_not_refused_while_the_ledger_is_full(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench([arrival(1)], [arrival(2)], capacity=ScriptedCapacity(refusals=3))

    told = bench.run()

    assert [one for one in told if one[0] == "ack"] == [("ack", 1), ("ack", 2)]
    assert [one for one in told if one[0] == "letters"] == []
    assert bench.link.heartbeats > 0
    assert caplog.text.count("holding messages") == 1


def test_nothing_is_acknowledged_before_the_dead_letters_are_confirmed() -> None:
    told = Bench([arrival(1, "bad-1")], letter_failures=2).run()

    assert [one[0] for one in told] == ["letters", "replies", "announced", "ack"]


def test_held_batch_is_dropped_when_the_link_is_lost() -> None:
    bench = Bench([arrival(1)], intake=ScriptedIntake([DatabaseUnavailable("away")]))
    bench.link.is_lost = True

    assert [one for one in bench.run() if one[0] == "ack"] == []
    assert ("closed",) in bench.told


def test_stopping_while_a_batch_is_held_acknowledges_nothing() -> None:
    endless = ScriptedIntake([DatabaseUnavailable("away")] * 100)
    bench = Bench([arrival(1)], intake=endless)
    thread = threading.Thread(target=bench.loop.run, daemon=True)
    thread.start()
    wait_until(lambda: bench.link.heartbeats > 0, what="a held batch")

    bench.stopping.set()
    thread.join(timeout=5)

    assert not thread.is_alive()
    assert bench.told == [("closed",)]


def test_broker_outage_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench([arrival(1)])
    failures = iter([OSError("refused")] * 3)

    def fault() -> None:
        error = next(failures, None)
        if error is not None:
            raise error

    bench.open_link_fault = fault
    assert ("ack", 1) in bench.run()
    assert caplog.text.count("broker lost") == 1
