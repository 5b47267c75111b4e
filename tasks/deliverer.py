"""Delivering: claims what the outbox holds, hands over what leaves by HTTP, publishes the rest. No Celery."""

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from models import failpoints, metrics
from models.database import Database
from models.deliveries.outbox import RESOLVED, Delivery, DeliveryKind, Outbox, ToldEvent
from models.errors import BrokerUnavailable
from models.failpoints import Step
from models.job import JobState, to_json
from tasks.names import EVENTS
from tasks.publisher import Publisher
from tasks.sending import Sending

_log = logging.getLogger("waybill.deliverer")
BROKER_REST = timedelta(seconds=5)
"""How long replies and events rest that the broker did not take: it may be back by then."""

_NOBODY = "the reply queue does not exist"
_CLOUD_EVENT = "application/cloudevents+json"


class Deliverer:
    """Sees that claimed deliveries leave. Waits for no receiver: only for the broker.

    Args:
        database: One of this process's own.
        outbox: Claims and settles.
        sending: Sends over HTTP; shared by the process.
        publisher: Publishes replies, events and notices; called from one thread at a time.
    """

    def __init__(self, database: Database, outbox: Outbox, sending: Sending, publisher: Publisher) -> None:
        self._database = database
        self._outbox = outbox
        self._sending = sending
        self._publisher = publisher

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
        """Publish replies and events, then settle them. What the broker did not confirm is put off.

        Raises:
            BrokerUnavailable: The rest waits for its next announcement.
        """
        done: list[UUID] = []
        events = [one for one in deliveries if one.kind is DeliveryKind.EVENTS]
        try:
            for delivery in deliveries:
                if delivery.kind is not DeliveryKind.REPLY:
                    continue
                if delivery.body is not None and self._publish_reply(delivery):
                    done.append(delivery.id)
                    metrics.DELIVERIES.labels(delivery.kind, "delivered").inc()
                else:
                    with self._database.transaction(Step.GIVE_UP_REPLY) as connection:
                        self._outbox.give_up(connection, delivery.id, error=_NOBODY, status=None)
            for notice in (one for one in deliveries if one.kind is DeliveryKind.NOTICE):
                self._publish_notice(notice)
                done.append(notice.id)
            self._publish_events([sequence for one in events for sequence in one.sequences])
            done += [one.id for one in events]
            metrics.DELIVERIES.labels(DeliveryKind.EVENTS, "delivered").inc(len(events))
        except BrokerUnavailable:
            unsent = [one for one in deliveries if one.id not in done]
            with self._database.transaction(Step.PUT_OFF_PUBLISH) as connection:
                self._outbox.park(connection, unsent, _clock(connection) + BROKER_REST)
            raise
        finally:
            if done:
                with self._database.transaction(Step.SETTLE_PUBLISH) as connection:
                    self._outbox.delivered(connection, done)

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

    def _publish_notice(self, notice: Delivery) -> None:
        self._publish_event(notice.body or b"", notice.target or "")
        metrics.DELIVERIES.labels(notice.kind, "delivered").inc()

    def _publish_events(self, all_sequences: Sequence[int]) -> None:
        """Publish job events. Keys that nobody listens to are found out by one message each.

        The broker returns what no queue takes, so an unheard event costs nothing beyond the first
        of its key: with no listener a batch of hundreds is a handful of messages.
        """
        if not all_sequences:
            return
        with self._database.snapshot() as connection:
            for key, sequences in self._outbox.event_keys(connection, all_sequences).items():
                first, rest = sequences[:1], sequences[1:]
                if self._publish_each(connection, key, first) and rest:
                    self._publish_each(connection, key, rest)

    def _publish_each(self, connection: Connection, key: str, sequences: Sequence[int]) -> bool:
        """Publish the events of one key, in order; whether anybody listens."""
        is_heard = False
        is_resolved = key.endswith("." + RESOLVED)
        for sequence, event in self._outbox.events(connection, sequences).items():
            body = resolved_event(sequence, event) if is_resolved else cloud_event(sequence, event)
            is_heard = self._publish_event(body, key)
        return is_heard

    def _publish_event(self, body: bytes, key: str) -> bool:
        failpoints.before(Step.PUBLISH_EVENT)
        is_heard = self._publisher.message(body, exchange=EVENTS, routing_key=key, content_type=_CLOUD_EVENT)
        failpoints.after(Step.PUBLISH_EVENT)
        return is_heard


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
