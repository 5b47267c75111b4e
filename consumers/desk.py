"""The desk: makes a submission of an upstream message, or refuses it. No broker, no ledger."""

from uuid import UUID

from consumers import envelope
from consumers.callers import Callers
from consumers.envelope import Arrival, Envelope
from models.errors import Detail, Forbidden, Invalid
from models.identity.principals import Principal, reach_of
from models.ids import lane_key, new_id
from models.job import Door, Submission
from models.registry import Registry, Resource


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
        _authorize(resource, principal, asked)
        admitted = resource.service.admit(asked.operation, asked.data)
        resource_id = _one_id(asked.resource_id, admitted.supplied_id)
        job_id = new_id()
        return Submission(
            job_id=job_id,
            operation=asked.operation,
            resource=asked.resource,
            resource_id=resource_id,
            lane=lane_key(asked.resource, resource_id),
            principal=principal,
            door=Door.AMQP,
            request_id=arrival.request_id or str(job_id),
            payload=admitted.payload,
            if_match=asked.if_match,
            idempotency_key=asked.message_id,
            fingerprint=asked.fingerprint(self._fingerprint_key),
            run_at=asked.run_at,
            expires_at=asked.expires_at,
            reply_to=asked.reply_to,
            correlation_id=asked.correlation_id,
            traceparent=asked.traceparent,
        )


def _authorize(resource: Resource, principal: Principal, asked: Envelope) -> None:
    action = asked.operation.action
    if reach_of(resource.type.permissions, principal.role, action) is None:
        raise Forbidden(f"The role {principal.role} may not {action} {resource.type.name}")


def _one_id(by_header: UUID | None, by_body: UUID | None) -> UUID:
    """The instance's id: the header's, the body's, or a new one; never two."""
    if by_header is not None and by_body is not None and by_header != by_body:
        raise Invalid(
            "The resource-id header and the body's id differ",
            details=[Detail("id", "must be the resource-id header's, or left out")],
        )
    return by_header or by_body or new_id()
