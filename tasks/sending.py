"""Sending over HTTP what was claimed: past the receiver's breaker, settled by what came back. No AMQP."""

import logging
import random
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from itertools import groupby

from sqlalchemy import Connection, text

from models import breaker, metrics
from models.breaker import BreakerBoard, Phase
from models.database import Database
from models.deliveries.delivery_policy import (
    MAX_AGE,
    Answer,
    Decision,
    Delivered,
    DisableEndpoint,
    GiveUp,
    RetryIn,
)
from models.deliveries.outbox import Delivery, DeliveryKind, Outbox
from models.errors import Transient
from models.failpoints import Step
from tasks.courier import Courier, NotNow, Receiver
from tasks.dispatch import THREADS, Dispatch

_log = logging.getLogger("waybill.sending")

NO_ROOM_REST = timedelta(seconds=5)
"""How long deliveries rest that found too many before them."""
OUR_FAULT_REST = timedelta(minutes=1)
"""How long a delivery rests that something of ours keeps from being sent."""
OUR_PATIENCE = 2 * MAX_AGE
"""The age at which a callback is given up that something of ours keeps from being sent; beyond the one to
which it may have waited for its receiver."""
_DEEPEST_FRAMES = 3
_NEVER = datetime.max.replace(tzinfo=UTC)
_EXPIRED = "given up: its time ran out while its receiver was not asked"


class _Passage(Enum):
    """What the way to a receiver is like for one delivery."""

    OPEN = auto()
    PROBE = auto()
    PARKED = auto()
    SETTLED = auto()


class Sending:
    """Sends claimed deliveries in threads of its own; handing over returns at once. One for each process.

    Args:
        database: One of this process's own.
        outbox: Settles.
        couriers: Send, by kind.
        threads: How many at most.
    """

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        couriers: Mapping[DeliveryKind, Courier],
        *,
        threads: int = THREADS,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._couriers = couriers
        self._uniform = uniform
        self._dispatch: Dispatch[Delivery] = Dispatch(self._send, threads=threads)

    def hand_over(self, deliveries: Sequence[Delivery]) -> None:
        """Take claimed deliveries. What a breaker keeps back, or there is no room for, is put off.

        Raises:
            DatabaseUnavailable: They are announced again later.
        """
        groups = _by_receiver(deliveries, self._receiver)
        held_back = self._held_back([receiver.dependency for receiver, _ in groups]) if groups else {}
        for receiver, group in groups:
            until = held_back.get(receiver.dependency)
            if until is not None:
                self._put_off(group, until)
                continue
            no_room = self._dispatch.put(receiver.dependency, group, at_once=receiver.at_once)
            if no_room:
                with self._database.transaction(Step.PUT_OFF_SURPLUS) as connection:
                    self._outbox.park(connection, no_room, self._soon(connection, NO_ROOM_REST))

    def wait_idle(self, timeout_seconds: float) -> bool:
        """Wait until all that was handed over is settled or put off; whether that came in time."""
        return self._dispatch.wait_idle(timeout_seconds)

    def close(self, timeout_seconds: float) -> None:
        """Give back what was not begun; what is under way gets so long."""
        left = self._dispatch.close(timeout_seconds)
        if left:
            with self._database.transaction(Step.GIVE_BACK) as connection:
                self._outbox.park(connection, left, _clock(connection))

    # ---- before --------------------------------------------------------------------------

    def _receiver(self, delivery: Delivery) -> Receiver:
        return self._couriers[delivery.kind].receiver(delivery)

    def _held_back(self, dependencies: Sequence[str]) -> dict[str, datetime]:
        """Those receivers whose breaker is open, and until when: nobody need wait in line to hear that."""
        with self._database.snapshot() as connection:
            states = BreakerBoard(connection).states(dependencies)
            now = _clock(connection) if states else None
        return {
            name: state.probe_at
            for name, state in states.items()
            if now is not None and state.probe_at is not None and breaker.phase(state, now) is Phase.OPEN
        }

    def _put_off(self, deliveries: Sequence[Delivery], until: datetime) -> None:
        """Park deliveries until a probe may go, or until their patience ends; where it has, give them up."""
        until += timedelta(seconds=5 * self._uniform())  # not all at the moment of the probe
        lasting: defaultdict[datetime, list[Delivery]] = defaultdict(list)
        for delivery in deliveries:
            if self._has_run_out(delivery):
                self._give_up(delivery, GiveUp(_EXPIRED), None)
            else:
                lasting[min(until, self._end_of_patience(delivery))].append(delivery)
        if lasting:
            with self._database.transaction(Step.PUT_OFF) as connection:
                for moment, some in lasting.items():
                    self._outbox.park(connection, some, moment)

    def _has_run_out(self, delivery: Delivery) -> bool:
        return self._end_of_patience(delivery) <= delivery.now

    def _end_of_patience(self, delivery: Delivery) -> datetime:
        patience = self._couriers[delivery.kind].patience(delivery)
        return _NEVER if patience is None else delivery.now + (patience - delivery.age)

    def _soon(self, connection: Connection, rest: timedelta) -> datetime:
        return _clock(connection) + rest * (0.5 + self._uniform())

    # ---- one delivery, in a thread -------------------------------------------------------

    def _send(self, delivery: Delivery) -> bool | None:
        """Send one delivery and settle it; whether its receiver works, None where it was not asked."""
        courier = self._couriers[delivery.kind]
        dependency = courier.receiver(delivery).dependency
        mine = delivery
        try:
            passage, mine = self._passage(courier, delivery, dependency)
            if passage is _Passage.SETTLED:
                return None
            if passage is _Passage.PARKED:
                return False
            began = time.monotonic()
            answer = _sent(courier, mine)
            metrics.SEND_SECONDS.labels(delivery.kind).observe(time.monotonic() - began)
            self._settle(courier, mine, answer, dependency, is_probe=passage is _Passage.PROBE)
        except NotNow as fault:
            self._wait_for_us(mine, fault)
            return False
        except Transient as fault:
            _log.warning("a delivery is announced again", extra={"reason": str(fault)})
            return False
        return not answer.blames_host

    def _passage(self, courier: Courier, delivery: Delivery, dependency: str) -> tuple[_Passage, Delivery]:
        """Ask whether ``delivery`` may go; where its breaker says no, it and all behind it are put off."""
        with self._database.transaction(Step.EXTEND) as connection:
            mine = self._outbox.extend(connection, delivery)
            if mine is None:  # somebody else has it by now
                return _Passage.SETTLED, delivery
            obstacle = courier.obstacle(connection, mine)
            if obstacle is not None:
                self._outbox.give_up(connection, mine, error=obstacle, status=None)
                metrics.DELIVERIES.labels(mine.kind, "giveup").inc()
                return _Passage.SETTLED, mine
            state = BreakerBoard(connection).states([dependency]).get(dependency, breaker.CLOSED)
            now = _clock(connection)
            phase = breaker.phase(state, now)
            if phase is Phase.CLOSED or (
                phase is Phase.HALF_OPEN and BreakerBoard(connection).claim_probe(dependency, now)
            ):
                prepared = courier.prepared(connection, mine)
                if prepared is None:
                    self._outbox.delivered(connection, [mine])
                    return _Passage.SETTLED, mine
                return _Passage.OPEN if phase is Phase.CLOSED else _Passage.PROBE, prepared
            until = max(state.probe_at or now, now)
        self._put_off([mine, *self._dispatch.drop(dependency)], until)
        return _Passage.PARKED, mine

    def _settle(
        self, courier: Courier, delivery: Delivery, answer: Answer, dependency: str, *, is_probe: bool
    ) -> None:
        decision = courier.decide(delivery, answer, self._uniform)
        with self._database.transaction(Step.SETTLE_SEND) as connection:
            board = BreakerBoard(connection)
            if answer.blames_host:
                board.record_failure(dependency, _clock(connection), is_probe=is_probe)
            elif not answer.is_refused:
                board.record_success(dependency)
            match decision:
                case Delivered():
                    self._outbox.delivered(connection, [delivery], status=answer.status)
                case RetryIn(delay):
                    error = answer.error or f"answered {answer.status}"
                    self._outbox.retry(connection, delivery, delay=delay, error=error, status=answer.status)
                case GiveUp(reason) | DisableEndpoint(reason):
                    if self._outbox.give_up(connection, delivery, error=reason, status=answer.status):
                        courier.given_up(connection, delivery, decision)
        _tell(delivery, decision, answer.status, dependency)

    def _wait_for_us(self, delivery: Delivery, fault: NotNow) -> None:
        """Put off what something of ours keeps from being sent; give it up where its patience has ended."""
        _log.error("a delivery waits for us", extra={"kind": delivery.kind, "reason": str(fault)})
        if delivery.age >= (self._couriers[delivery.kind].patience(delivery) or OUR_PATIENCE):
            self._give_up(delivery, GiveUp(f"given up: {fault}", is_ours=True), None)
            return
        with self._database.transaction(Step.PUT_OFF_OURS) as connection:
            self._outbox.park(connection, [delivery], self._soon(connection, OUR_FAULT_REST))

    def _give_up(self, delivery: Delivery, decision: GiveUp, status: int | None) -> None:
        courier = self._couriers[delivery.kind]
        with self._database.transaction(Step.GIVE_UP) as connection:
            mine = self._outbox.extend(connection, delivery)
            if mine is None:
                return
            self._outbox.give_up(connection, mine, error=decision.reason, status=status)
            courier.given_up(connection, mine, decision)
        _tell(delivery, decision, status, courier.receiver(delivery).dependency)


def _sent(courier: Courier, delivery: Delivery) -> Answer:
    """The answer to it.

    Raises:
        NotNow: It cannot be sent now, or our own code cannot cope with it; what it says may hold a secret.
    """
    try:
        return courier.send(delivery)
    except Transient:
        raise
    except Exception as error:
        stack = traceback.format_tb(error.__traceback__)[-_DEEPEST_FRAMES:]
        _log.error("a fault of ours kept a delivery", extra={"kind": delivery.kind, "stack": stack})
        raise NotNow(f"{type(error).__name__} in our own code") from None


def _tell(delivery: Delivery, decision: Decision, status: int | None, dependency: str) -> None:
    result = type(decision).__name__.lower()
    metrics.DELIVERIES.labels(delivery.kind, result).inc()
    if isinstance(decision, Delivered):
        metrics.DELIVERY_SECONDS.labels(delivery.kind).observe(delivery.age.total_seconds())
    facts = {"jobId": str(delivery.job_id), "host": dependency, "status": status, "result": result}
    _log.info("%s sent", delivery.kind, extra=facts)


def _clock(connection: Connection) -> datetime:
    moment: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    return moment


def _by_receiver(
    deliveries: Sequence[Delivery], receiver_of: Callable[[Delivery], Receiver]
) -> list[tuple[Receiver, list[Delivery]]]:
    """Deliveries by receiver, each group in the order of claiming."""

    def key(delivery: Delivery) -> str:
        return receiver_of(delivery).dependency

    groups = (list(group) for _, group in groupby(sorted(deliveries, key=key), key=key))
    return [(receiver_of(group[0]), group) for group in groups]
