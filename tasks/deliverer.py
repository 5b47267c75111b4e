"""Delivering: claims what the outbox holds, hands over what leaves by HTTP, publishes the rest. No Celery."""

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from models import failpoints, metrics
from models.database import Database
from models.deliveries.delivery_policy import Answer, GiveUp, RetryIn, decide
from models.deliveries.outbox import RESOLVED, Delivery, DeliveryKind, Outbox, ToldEvent
from models.errors import BrokerUnavailable
from models.failpoints import Step
from models.job import JobState, to_json
from tasks.names import EVENTS
from tasks.publisher import NotConfirmed, NotTaken, Publisher
from tasks.sending import Sending

_log = logging.getLogger("waybill.deliverer")
BROKER_REST = timedelta(seconds=5)
"""How long replies and events rest that the broker did not take: it may be back by then."""

_NOBODY = "the reply queue does not exist"
_FULL = "the reply queue is full"
_UNCONFIRMED = "the broker did not confirm it"
_LISTENER_FULL = "a listener's queue is full"
_CLOUD_EVENT = "application/cloudevents+json"
_UNTRIED = "it was not tried"
_SILENCES = 2
"""Messages that are not confirmed, each of them waited for, before the rest of a batch is put off."""


class Deliverer:
    """Sees that claimed deliveries leave. Waits for no receiver: only for the broker.

    Args:
        database: One of this process's own.
        outbox: Claims and settles.
        sending: Sends over HTTP; shared by the process.
        publisher: Publishes replies, events and notices; called from one thread at a time.
    """

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        sending: Sending,
        publisher: Publisher,
        *,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._sending = sending
        self._publisher = publisher
        self._uniform = uniform

    def deliver(self, delivery_ids: Sequence[UUID]) -> None:
        """See to those of ``delivery_ids`` that are due and that nobody else is seeing to.

        Raises:
            DatabaseUnavailable: They are announced again later.
        """
        with self._database.transaction(Step.CLAIM) as connection:
            claimed = self._outbox.claim(connection, delivery_ids)
        self._sending.hand_over([one for one in claimed if one.kind.is_sent_over_http])
        try:
            self._publish([one for one in claimed if not one.kind.is_sent_over_http])
        except BrokerUnavailable as error:
            _log.warning("replies and events wait for the broker", extra={"reason": str(error)})

    # ---- AMQP --------------------------------------------------------------------------

    def _publish(self, deliveries: Sequence[Delivery]) -> None:
        """Publish replies and events, then settle them. What a queue did not take is put off.

        A queue that is full, or that does not confirm, holds up nothing but what is for it.

        Raises:
            BrokerUnavailable: The rest waits for its next announcement.
        """
        course = _Course()
        lost: BrokerUnavailable | None = None
        alone = [one for one in deliveries if one.kind is not DeliveryKind.EVENTS]
        try:
            for delivery in sorted(alone, key=lambda one: one.error == _UNCONFIRMED):  # others go first
                self._publish_alone(delivery, course)
            course.silences = 0  # events have a patience of their own
            self._publish_events([one for one in deliveries if one.kind is DeliveryKind.EVENTS], course)
        except BrokerUnavailable as error:
            lost = error
        finally:
            if course.done or course.refused or course.parts:
                with self._database.transaction(Step.SETTLE_PUBLISH) as connection:
                    self._settle(connection, course)
        settled = {one.id for one in (*course.done, *course.refused, *course.given_up, *course.parts)}
        unsent = [one for one in deliveries if one.id not in settled]
        if unsent:
            with self._database.transaction(Step.PUT_OFF_PUBLISH) as connection:
                self._outbox.park(connection, unsent, _clock(connection) + BROKER_REST)
        if lost is not None:
            raise lost

    def _settle(self, connection: Connection, course: "_Course") -> None:
        """Settle what was taken; try what a queue did not take ever more rarely, until its days are over."""
        done, refused, untried = list(course.done), dict(course.refused), []
        for events, parts in course.parts.items():
            attempts = 0 if None in parts else events.attempts  # what gets on begins anew
            for error, part in self._parted(connection, events, parts):
                if error is None:
                    done.append(part)
                elif error == _UNTRIED:
                    untried.append(part)
                else:
                    refused[replace(part, attempts=attempts)] = error
        if done:
            self._outbox.delivered(connection, done)
        if untried:
            self._outbox.park(connection, untried, _clock(connection) + BROKER_REST)
        for one in done:
            metrics.DELIVERIES.labels(one.kind, "delivered").inc()
        for one, error in refused.items():
            age = one.age if one.attempts else timedelta(0)  # the first refusal is not the last, however late
            match decide(Answer(None, error), attempts=one.attempts + 1, age=age, random=self._uniform):
                case RetryIn(delay):
                    self._outbox.retry(connection, one, delay=delay, error=error, status=None)
                    metrics.DELIVERIES.labels(one.kind, "retryin").inc()
                case GiveUp(reason):
                    self._outbox.give_up(connection, one, error=reason, status=None)
                    metrics.DELIVERIES.labels(one.kind, "giveup").inc()
        if refused:
            _log.warning("queues did not take replies or events", extra={"deliveries": len(refused)})

    def _parted(
        self, connection: Connection, events: Delivery, parts: Mapping[str | None, Sequence[int]]
    ) -> Iterator[tuple[str | None, Delivery]]:
        """A delivery for each of the parts; the last is what is left of it. None where the claim is lost."""
        *others, (last, _) = parts.items()
        for error, sequences in others:
            part = self._outbox.split(connection, events, sequences)
            if part is None:
                return
            yield error, part
        yield last, replace(events, sequences=tuple(parts[last]))

    def _publish_alone(self, delivery: Delivery, course: "_Course") -> None:
        """Publish a reply or a notice.

        Raises:
            BrokerUnavailable: The broker is lost.
        """
        is_reply = delivery.kind is DeliveryKind.REPLY
        if is_reply and delivery.reply_to in course.silent_queues:
            course.refused[delivery] = _UNCONFIRMED
            return
        if course.is_out_of_patience:
            return
        try:
            if not is_reply:
                self._publish_event(delivery.body or b"", delivery.target or "")
            elif delivery.body is None or not self._publish_reply(delivery):
                with self._database.transaction(Step.GIVE_UP_REPLY) as connection:
                    self._outbox.give_up(connection, delivery, error=_NOBODY, status=None)
                course.given_up.append(delivery)
                return
            course.done.append(delivery)
        except NotTaken:
            course.refused[delivery] = _FULL if is_reply else _LISTENER_FULL
        except NotConfirmed:
            course.silences += 1
            course.silent_queues.add(delivery.reply_to)
            course.refused[delivery] = _UNCONFIRMED

    def _publish_reply(self, delivery: Delivery) -> bool:
        failpoints.before(Step.PUBLISH_REPLY)
        is_routed = self._publisher.message(
            delivery.body or b"",
            exchange="",
            routing_key=delivery.reply_to or "",
            content_type="application/json",
            correlation_id=delivery.correlation_id,
            type=f"job.{delivery.state_told}",
            headers={"x-job-id": str(delivery.job_id)},
        )
        failpoints.after(Step.PUBLISH_REPLY)
        return is_routed

    def _publish_events(self, deliveries: Sequence[Delivery], course: "_Course") -> None:
        """Publish job events. Of what patience did not suffice for, nothing is settled.

        Raises:
            BrokerUnavailable: The broker is lost.
        """
        for again in (False, True):
            some = [one for one in deliveries if (one.error == _LISTENER_FULL) is again]
            if some:
                with self._database.snapshot() as connection:
                    sequences = [sequence for one in some for sequence in one.sequences]
                    keys = list(self._outbox.event_keys(connection, sequences).items())
                    if any(one.error == _UNCONFIRMED for one in some):
                        keys.sort(key=lambda _: self._uniform())  # so that each gets its turn
                    for key, of_key in keys:
                        self._publish_key(connection, key, of_key, course, again=again)
        for one in deliveries:
            parts: dict[str | None, list[int]] = {}
            for sequence in one.sequences:
                parts.setdefault(course.untold.get(sequence), []).append(sequence)
            if set(parts) != {_UNTRIED}:
                course.parts[one] = parts

    def _publish_key(
        self,
        connection: Connection,
        key: str,
        sequences: Sequence[int],
        course: "_Course",
        *,
        again: bool,
    ) -> None:
        """Publish the events of one key, in order.

        At first each is tried, for other queues of the same key may have room; ``again``, those others have
        theirs, and one refusal tells enough. Keys that nobody listens to are found out by one message each.
        The broker returns what no queue takes, so an unheard event costs nothing beyond the first of its
        key: with no listener a batch of hundreds is a handful of messages.
        """
        if course.is_out_of_patience:
            course.leave(sequences, _UNTRIED)
            return
        tell = resolved_event if key.endswith("." + RESOLVED) else cloud_event
        for part in (sequences[:1], sequences[1:]):
            is_heard = False
            for sequence, event in self._outbox.events(connection, part).items() if part else ():
                try:
                    is_heard = self._publish_event(tell(sequence, event), key)
                except NotTaken:
                    is_heard = True
                    course.leave(
                        sequences[sequences.index(sequence) :] if again else [sequence], _LISTENER_FULL
                    )
                    if again:
                        return
                except NotConfirmed:
                    course.silences += 1
                    course.leave(sequences[sequences.index(sequence) :], _UNCONFIRMED)
                    return
            if not is_heard:
                return

    def _publish_event(self, body: bytes, key: str) -> bool:
        failpoints.before(Step.PUBLISH_EVENT)
        is_heard = self._publisher.message(body, exchange=EVENTS, routing_key=key, content_type=_CLOUD_EVENT)
        failpoints.after(Step.PUBLISH_EVENT)
        return is_heard


@dataclass(slots=True)
class _Course:
    """How a batch has gone so far.

    Attributes:
        done: Replies and notices that were taken.
        refused: Not taken by a queue, and why.
        parts: Events, by why they were not taken; None: they were.
        given_up: Replies that nobody waits for any more; settled already.
        untold: Sequences of events that were not taken, and why.
        silences: Messages that were not confirmed; each was waited for.
        silent_queues: Where replies among them were for: one tells enough.
    """

    done: list[Delivery] = field(default_factory=list)
    refused: dict[Delivery, str] = field(default_factory=dict)
    parts: dict[Delivery, dict[str | None, list[int]]] = field(default_factory=dict)
    given_up: list[Delivery] = field(default_factory=list)
    untold: dict[int, str] = field(default_factory=dict)
    silences: int = 0
    silent_queues: set[str | None] = field(default_factory=set)

    @property
    def is_out_of_patience(self) -> bool:
        """Whether what has not been tried yet had better wait for its next time."""
        return self.silences >= _SILENCES

    def leave(self, sequences: Sequence[int], error: str) -> None:
        """Events that were not taken. Of one that two keys tell, the first of them says why."""
        for sequence in sequences:
            self.untold.setdefault(sequence, error)


def cloud_event(sequence: int, event: ToldEvent) -> bytes:
    """A job event as a CloudEvent 1.0 in structured JSON; its id is the same at every attempt."""
    return to_json(_cloud_event(f"{event.job.id}.{sequence}", f"job.{event.job.state}", event))


def resolved_event(sequence: int, event: ToldEvent) -> bytes:
    """A dead letter that needs no attention any more: its redriven job ended, or it was discarded."""
    document = _cloud_event(f"{event.job.id}.{sequence}.{RESOLVED}", f"job.{RESOLVED}", event)
    resolution = "discarded" if event.job.state is JobState.DEAD else "redriven"
    return to_json({**document, "resolution": resolution})


def _cloud_event(identifier: str, kind: str, event: ToldEvent) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": identifier,
        "source": "/api/v1/jobs",
        "type": kind,
        "subject": str(event.job.id),
        "time": event.at,
        "datacontenttype": "application/json",
        "data": event.job.document(with_result=False),
    }


def _clock(connection: Connection) -> datetime:
    moment: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    return moment
