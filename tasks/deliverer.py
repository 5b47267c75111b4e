"""Delivering: sends what the outbox holds, by webhook, AMQP reply or job event. No Celery; see ``app.py``."""

import logging
import random
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from datetime import datetime, timedelta
from enum import Enum, auto
from itertools import groupby
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from models import breaker, metrics
from models.breaker import BreakerBoard, Phase
from models.database import Database
from models.deliveries.address_guard import check_url
from models.deliveries.delivery_policy import Answer, Delivered, DisableEndpoint, GiveUp, RetryIn, decide
from models.deliveries.outbox import RESOLVED, Delivery, DeliveryKind, Outbox, ToldEvent
from models.errors import BrokerUnavailable, Invalid
from models.job import JobState, to_json
from tasks.names import EVENTS
from tasks.publisher import Publisher
from tasks.webhook import WebhookSender

_log = logging.getLogger("waybill.deliverer")
BROKER_REST = timedelta(seconds=5)
"""How long replies and events rest that the broker did not take: it may be back by then."""

_GONE = "the endpoint was removed or disabled"
_NOBODY = "the reply queue does not exist"


class _Passage(Enum):
    """What the way to a host is like for one delivery."""

    OPEN = auto()
    PROBE = auto()
    PARKED = auto()
    TAKEN = auto()


class Deliverer:
    """Sends claimed deliveries. Receivers are served side by side; one that fails delays nobody else.

    Args:
        database: One of this process's own.
        outbox: Claims and settles.
        sender: Sends webhooks.
        publisher: Publishes replies and events; called from one thread at a time.
        executor: Where webhooks are sent.
    """

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        sender: WebhookSender,
        publisher: Publisher,
        executor: Executor,
        *,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._sender = sender
        self._publisher = publisher
        self._executor = executor
        self._uniform = uniform

    def deliver(self, delivery_ids: Sequence[UUID]) -> None:
        """Send those of ``delivery_ids`` that are due and that nobody else is sending.

        Raises:
            DatabaseUnavailable: They are announced again later.
        """
        with self._database.transaction() as connection:
            claimed = self._outbox.claim(connection, delivery_ids)
        callbacks = [one for one in claimed if one.kind is DeliveryKind.CALLBACK]
        sending = [self._executor.submit(self._send_callbacks, group) for group in _by_host(callbacks)]
        try:
            self._publish([one for one in claimed if one.kind is not DeliveryKind.CALLBACK])
        except BrokerUnavailable as error:
            _log.warning("replies and events wait for the broker", extra={"reason": str(error)})
        for future in sending:
            future.result()

    # ---- webhooks ----------------------------------------------------------------------

    def _send_callbacks(self, deliveries: Sequence[Delivery]) -> None:
        """Send the callbacks of one host, in order, for as long as its breaker lets them pass."""
        for place, delivery in enumerate(deliveries):
            if delivery.url is None or delivery.is_disabled:
                with self._database.transaction() as connection:
                    self._outbox.give_up(connection, delivery.id, error=_GONE, status=None)
                continue
            passage = self._passage(delivery, deliveries[place + 1 :])
            if passage is _Passage.PARKED:
                return
            if passage is _Passage.TAKEN:
                continue
            body = delivery.body or b""
            answer = self._sender.send(
                delivery.url, delivery.secrets, delivery.webhook_id, delivery.now, body
            )
            self._settle(delivery, answer, is_probe=passage is _Passage.PROBE)

    def _passage(self, delivery: Delivery, waiting: Sequence[Delivery]) -> _Passage:
        """Ask the host's breaker whether ``delivery`` may go; where not, park it and all ``waiting``."""
        host = _host_of(delivery)
        with self._database.transaction() as connection:
            mine = self._outbox.extend(connection, delivery)
            if mine is None:
                return _Passage.TAKEN
            board = BreakerBoard(connection)
            state = board.states([host]).get(host, breaker.CLOSED)
            now = _clock(connection)
            phase = breaker.phase(state, now)
            if phase is Phase.CLOSED:
                return _Passage.OPEN
            if phase is Phase.HALF_OPEN and board.claim_probe(host, now):
                return _Passage.PROBE
            spread = timedelta(seconds=5 * self._uniform())  # not all at the moment of the probe
            until = max(state.probe_at or now, now) + spread
            self._outbox.park(connection, [mine, *waiting], until)
            return _Passage.PARKED

    def _settle(self, delivery: Delivery, answer: Answer, *, is_probe: bool) -> None:
        decision = decide(answer, attempts=delivery.attempts + 1, age=delivery.age, random=self._uniform)
        host = _host_of(delivery)
        with self._database.transaction() as connection:
            board = BreakerBoard(connection)
            if answer.blames_host:
                board.record_failure(host, _clock(connection), is_probe=is_probe)
            elif not answer.is_refused:
                board.record_success(host)
            match decision:
                case Delivered():
                    self._outbox.delivered(connection, [delivery.id], status=answer.status)
                case RetryIn(delay):
                    error = answer.error or f"answered {answer.status}"
                    self._outbox.retry(
                        connection, delivery.id, delay=delay, error=error, status=answer.status
                    )
                case GiveUp(reason):
                    self._outbox.give_up(connection, delivery.id, error=reason, status=answer.status)
                case DisableEndpoint(reason):
                    self._outbox.give_up(connection, delivery.id, error=reason, status=answer.status)
                    if delivery.endpoint_id is not None:
                        self._outbox.disable_endpoint(connection, delivery.endpoint_id)
        result = type(decision).__name__.lower()
        metrics.DELIVERIES.labels(delivery.kind, result).inc()
        facts = {"jobId": str(delivery.job_id), "host": host, "status": answer.status, "result": result}
        _log.info("callback sent", extra=facts)

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
                if self._publish_reply(delivery):
                    done.append(delivery.id)
                    metrics.DELIVERIES.labels(delivery.kind, "delivered").inc()
                else:
                    with self._database.transaction() as connection:
                        self._outbox.give_up(connection, delivery.id, error=_NOBODY, status=None)
            self._publish_events([sequence for one in events for sequence in one.sequences])
            done += [one.id for one in events]
            metrics.DELIVERIES.labels(DeliveryKind.EVENTS, "delivered").inc(len(events))
        except BrokerUnavailable:
            unsent = [one for one in deliveries if one.id not in done]
            with self._database.transaction() as connection:
                self._outbox.park(connection, unsent, _clock(connection) + BROKER_REST)
            raise
        finally:
            if done:
                with self._database.transaction() as connection:
                    self._outbox.delivered(connection, done)

    def _publish_reply(self, delivery: Delivery) -> bool:
        return self._publisher.message(
            delivery.body or b"",
            exchange="",
            routing_key=delivery.reply_to or "",
            content_type="application/json",
            correlation_id=delivery.correlation_id,
            type=f"job.{delivery.state_told}",
            headers={"x-job-id": str(delivery.job_id)},
        )

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
            is_heard = self._publisher.message(
                resolved_event(sequence, event) if is_resolved else cloud_event(sequence, event),
                exchange=EVENTS,
                routing_key=key,
                content_type="application/cloudevents+json",
            )
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


def _host_of(delivery: Delivery) -> str:
    """The dependency whose breaker decides; a URL that breaks the rules by now stands for itself."""
    try:
        return check_url(delivery.url or "", allow_private=True).dependency
    except Invalid:
        return f"endpoint:{delivery.endpoint_id}"


def _by_host(deliveries: Sequence[Delivery]) -> list[list[Delivery]]:
    return [list(group) for _, group in groupby(sorted(deliveries, key=_host_of), key=_host_of)]
