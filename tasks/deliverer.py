"""Delivering: claims what the outbox holds, hands over what leaves by HTTP, publishes the rest. No Celery."""

import logging
import random
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
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
_LISTENER_FULL = "a listener's queue is full, or does not confirm"
_CLOUD_EVENT = "application/cloudevents+json"


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
        """Publish replies and events, then settle them. What the broker did not take is put off.

        A queue that is full, or that does not confirm, holds up nothing but what is for it.

        Raises:
            BrokerUnavailable: The rest waits for its next announcement.
        """
        done: list[Delivery] = []
        refused: dict[Delivery, str] = {}
        doubt = _Doubt()
        events = [one for one in deliveries if one.kind is DeliveryKind.EVENTS]
        try:
            for delivery in deliveries:
                if delivery.kind is DeliveryKind.EVENTS:
                    continue
                try:
                    is_sent = self._publish_alone(delivery)
                except NotTaken:
                    refused[delivery] = _FULL if delivery.kind is DeliveryKind.REPLY else _LISTENER_FULL
                    continue
                except NotConfirmed as error:
                    doubt.grow(error)
                    refused[delivery] = _UNCONFIRMED
                    continue
                if is_sent:
                    done.append(delivery)
                else:
                    with self._database.transaction(Step.GIVE_UP_REPLY) as connection:
                        self._outbox.give_up(connection, delivery, error=_NOBODY, status=None)
            untold = self._publish_events(events, doubt)
            for one in events:
                left = _left_of(one, untold)
                if left.sequences:
                    refused[left] = _LISTENER_FULL
                else:
                    done.append(one)
        except BrokerUnavailable:
            settled = {one.id for one in (*done, *refused)}
            unsent = [one for one in deliveries if one.id not in settled]
            with self._database.transaction(Step.PUT_OFF_PUBLISH) as connection:
                self._outbox.park(connection, unsent, _clock(connection) + BROKER_REST)
            raise
        finally:
            if done or refused:
                with self._database.transaction(Step.SETTLE_PUBLISH) as connection:
                    self._settle(connection, done, refused)

    def _settle(
        self, connection: Connection, done: Sequence[Delivery], refused: Mapping[Delivery, str]
    ) -> None:
        """Settle what was taken; try what a queue did not take ever more rarely, until its days are over."""
        if done:
            self._outbox.delivered(connection, done)
        for one in done:
            metrics.DELIVERIES.labels(one.kind, "delivered").inc()
        for one, error in refused.items():
            match decide(Answer(None, error), attempts=one.attempts + 1, age=one.age, random=self._uniform):
                case RetryIn(delay):
                    self._outbox.retry(connection, one, delay=delay, error=error, status=None)
                    metrics.DELIVERIES.labels(one.kind, "retryin").inc()
                case GiveUp(reason):
                    self._outbox.give_up(connection, one, error=reason, status=None)
                    metrics.DELIVERIES.labels(one.kind, "giveup").inc()
        if refused:
            _log.warning("queues did not take replies or events", extra={"deliveries": len(refused)})

    def _publish_alone(self, delivery: Delivery) -> bool:
        """Publish a reply or a notice; False where a reply has no queue.

        Raises:
            NotTaken: A queue is full.
        """
        if delivery.kind is DeliveryKind.NOTICE:
            self._publish_event(delivery.body or b"", delivery.target or "")
            return True
        return delivery.body is not None and self._publish_reply(delivery)

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

    def _publish_events(self, deliveries: Sequence[Delivery], doubt: "_Doubt") -> set[int]:
        """Publish job events; those that a listener's queue left untold.

        Raises:
            BrokerUnavailable: The broker is lost.
        """
        untold: set[int] = set()
        for again in (False, True):
            some = [one for one in deliveries if (one.attempts > 0) is again]
            sequences = [sequence for one in some for sequence in one.sequences]
            if sequences:
                with self._database.snapshot() as connection:
                    for key, of_key in self._outbox.event_keys(connection, sequences).items():
                        untold.update(self._publish_key(connection, key, of_key, doubt, again=again))
        return untold

    def _publish_key(
        self, connection: Connection, key: str, sequences: Sequence[int], doubt: "_Doubt", *, again: bool
    ) -> Sequence[int]:
        """Publish the events of one key, in order; those that a queue did not take.

        At first each is tried, for other queues of the same key may have room; ``again``, those others have
        theirs, and one refusal tells enough. Keys that nobody listens to are found out by one message each.
        The broker returns what no queue takes, so an unheard event costs nothing beyond the first of its
        key: with no listener a batch of hundreds is a handful of messages.
        """
        untold: list[int] = []
        tell = resolved_event if key.endswith("." + RESOLVED) else cloud_event
        for part in (sequences[:1], sequences[1:]):
            is_heard = False
            for sequence, event in self._outbox.events(connection, part).items() if part else ():
                try:
                    is_heard = self._publish_event(tell(sequence, event), key)
                except NotTaken:
                    is_heard = True
                    untold.append(sequence)
                    if again:
                        return sequences[sequences.index(sequence) :]
                except NotConfirmed as error:
                    doubt.grow(error)
                    return [*untold, *sequences[sequences.index(sequence) :]]
            if not is_heard:
                break
        return untold

    def _publish_event(self, body: bytes, key: str) -> bool:
        failpoints.before(Step.PUBLISH_EVENT)
        is_heard = self._publisher.message(body, exchange=EVENTS, routing_key=key, content_type=_CLOUD_EVENT)
        failpoints.after(Step.PUBLISH_EVENT)
        return is_heard


class _Doubt:
    """Whether the broker is there at all, as far as it can be told from what it does not confirm."""

    def __init__(self) -> None:
        self._is_grown = False

    def grow(self, error: NotConfirmed) -> None:
        """One message may have met a queue that is out of order; at the second it is the broker.

        Raises:
            NotConfirmed: The error given.
        """
        if self._is_grown:
            raise error
        self._is_grown = True


def _left_of(events: Delivery, untold: Set[int]) -> Delivery:
    """What was not taken of ``events``. One that gets on begins anew with its attempts."""
    left = tuple(sequence for sequence in events.sequences if sequence in untold)
    return replace(events, sequences=left, attempts=events.attempts if left == events.sequences else 0)


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
