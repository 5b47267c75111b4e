"""The desk: makes a submission of an upstream message, or refuses it. No broker, no ledger."""

from consumers import envelope
from consumers.callers import Callers
from consumers.envelope import Arrival
from models.ids import new_id
from models.intake import KeyedRequest
from models.job import Door, Submission
from models.registry import Registry
from models.target import aim


class Desk:
    """Checks messages in the order of the HTTP door: who, what, may they, does it fit the schema.

    Args:
        callers: Tells on whose behalf a message speaks.
        registry: Knows the resources.
        fingerprint_key: Keys the digests that tell a repeated request from another one.
    """

    def __init__(self, callers: Callers, registry: Registry, fingerprint_key: bytes) -> None:
        self._callers = callers
        self._registry = registry
        self._fingerprint_key = fingerprint_key

    def submission(self, arrival: Arrival) -> Submission:
        """What the message asks of the ledger.

        Raises:
            Refusal: It cannot be taken; with the status that HTTP would give.
            DatabaseUnavailable: It cannot be found out now.
        """
        envelope.check_delivery(arrival)
        principal = self._callers.of(arrival)
        asked = envelope.read(arrival)
        resource = self._registry[asked.resource]
        resource.service.check_role(principal, asked.operation.action)
        admitted = resource.service.admit(asked.operation, asked.data)
        target = aim(
            resource.type,
            asked.operation,
            admitted,
            named_id=asked.resource_id,
            parent_id=asked.parent_id,
            if_match=asked.if_match,
        )
        payload = admitted.payload
        if payload is not None and resource.service.has_secrets:
            payload = resource.service.secured(payload, target.resource_id)
        job_id = new_id()
        return Submission(
            job_id=job_id,
            operation=asked.operation,
            resource=asked.resource,
            resource_id=target.resource_id,
            parent_id=target.parent_id,
            lane=target.lane,
            principal=principal,
            door=Door.AMQP,
            request_id=arrival.request_id or str(job_id),
            payload=payload,
            if_match=asked.if_match,
            idempotency_key=asked.message_id,
            fingerprint=asked.fingerprint(self._fingerprint_key),
            run_at=asked.run_at,
            expires_at=asked.expires_at,
            reply_to=asked.reply_to,
            correlation_id=asked.correlation_id,
            traceparent=asked.traceparent,
        )

    def request(self, arrival: Arrival) -> KeyedRequest:
        """Whose request a message is and what it asks, be it allowed any longer or not.

        Raises:
            Refusal: It cannot be told.
            DatabaseUnavailable: It cannot be found out now.
        """
        asked = envelope.read(arrival)
        sender, fingerprint = self._callers.sender(arrival), asked.fingerprint(self._fingerprint_key)
        return KeyedRequest(sender, Door.AMQP, asked.message_id, fingerprint)
