"""Couriers: how deliveries of one kind leave over HTTP; and the one for callbacks. No queues, no breakers."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from sqlalchemy import Connection

from models import failpoints, metrics
from models.deliveries.address_guard import check_url
from models.deliveries.delivery_policy import Answer, Decision, DisableEndpoint, GiveUp, decide
from models.deliveries.endpoint_secrets import EndpointSecrets
from models.deliveries.endpoints import CallbackEndpoint, CallbackEndpoints
from models.deliveries.outbox import Delivery, Outbox
from models.errors import Invalid, Transient
from models.failpoints import Step
from models.identity.sealing import Unsealable
from tasks.dispatch import AT_ONCE
from tasks.webhook import WebhookSender

_log = logging.getLogger("waybill.courier")

_REMOVED = "the endpoint was removed or disabled"
_PRUNED = "the job is past its retention"
ENDPOINT_DISABLED = "callback-endpoints.update.disabled"
"""Routing key of the notice that an endpoint was disabled."""


class NotNow(Transient):
    """Something of ours is missing: it costs no attempt, and is tried again after a rest."""


@dataclass(frozen=True, slots=True)
class Receiver:
    """Whom a delivery is for.

    Attributes:
        dependency: Whose breaker decides.
        at_once: Deliveries that one process sends it at a time.
    """

    dependency: str
    at_once: int


class Courier(Protocol):
    """Sends deliveries of one kind, and says what follows from the answer."""

    def receiver(self, delivery: Delivery) -> Receiver:
        """Whom it is for."""
        ...

    def obstacle(self, connection: Connection, delivery: Delivery) -> str | None:
        """Why it cannot be sent, ever; None where it can. Asked before each attempt."""
        ...

    def prepared(self, connection: Connection, delivery: Delivery) -> Delivery | None:
        """With what it sends kept; None where there is nothing to send.

        Raises:
            NotNow: It cannot be told now.
        """
        ...

    def send(self, delivery: Delivery) -> Answer:
        """Send it once. No transaction is open.

        Raises:
            NotNow: It cannot be sent now.
        """
        ...

    def decide(self, delivery: Delivery, answer: Answer, random: Callable[[], float]) -> Decision:
        """What becomes of it after ``answer``."""
        ...

    def patience(self, delivery: Delivery) -> timedelta | None:
        """The age at which it is given up where nothing can be sent; None: never without a last attempt."""
        ...

    def given_up(self, connection: Connection, delivery: Delivery, decision: Decision) -> None:
        """Do what follows from giving it up, in that transaction."""
        ...


class CallbackCourier:
    """Sends callbacks. An endpoint that is gone for good, or failed for days, is disabled with a notice.

    Args:
        sender: Sends webhooks.
        secrets: Opens what signs.
        endpoints: Disables.
        outbox: Takes the notice.
    """

    def __init__(
        self, sender: WebhookSender, secrets: EndpointSecrets, endpoints: CallbackEndpoints, outbox: Outbox
    ) -> None:
        self._sender = sender
        self._secrets = secrets
        self._endpoints = endpoints
        self._outbox = outbox

    def receiver(self, delivery: Delivery) -> Receiver:
        """The host; a URL that breaks the rules by now stands for itself."""
        try:
            return Receiver(check_url(delivery.url or "", allow_private=True).dependency, AT_ONCE)
        except Invalid:
            return Receiver(f"endpoint:{delivery.endpoint_id}", AT_ONCE)

    def obstacle(self, connection: Connection, delivery: Delivery) -> str | None:
        """The endpoint, or the job, is gone."""
        if delivery.url is None or (delivery.is_disabled and self._stays_disabled(connection, delivery)):
            return _REMOVED
        return _PRUNED if delivery.body is None else None

    def _stays_disabled(self, connection: Connection, delivery: Delivery) -> bool:
        """Held so until this is settled: a recovery finds it either given up, or sent."""
        return delivery.endpoint_id is None or self._endpoints.hold_disabled(connection, delivery.endpoint_id)

    def prepared(self, connection: Connection, delivery: Delivery) -> Delivery:
        """As it is: the outbox has rendered it."""
        return delivery

    def send(self, delivery: Delivery) -> Answer:
        """Signed by each secret of the endpoint."""
        if delivery.endpoint_id is None or delivery.url is None or delivery.body is None:
            raise LookupError("a callback without endpoint or body was to be sent")
        try:
            secrets = [self._secrets.open(delivery.endpoint_id, one) for one in delivery.secrets]
        except Unsealable as error:
            raise NotNow(str(error)) from error
        failpoints.before(Step.SEND_CALLBACK)
        answer = self._sender.send(delivery.url, secrets, delivery.webhook_id, delivery.now, delivery.body)
        failpoints.after(Step.SEND_CALLBACK)
        return answer

    def decide(self, delivery: Delivery, answer: Answer, random: Callable[[], float]) -> Decision:
        """As the policy has it."""
        return decide(answer, attempts=delivery.attempts + 1, age=delivery.age, random=random)

    def patience(self, delivery: Delivery) -> timedelta | None:
        """However long its host's breaker is open, a callback gets its last attempt."""
        return None

    def given_up(self, connection: Connection, delivery: Delivery, decision: Decision) -> None:
        """Disable an endpoint that asked for it (410), or that took nothing for days."""
        if delivery.endpoint_id is None:
            return
        reason = decision.reason if isinstance(decision, DisableEndpoint) else None
        if (
            isinstance(decision, GiveUp)
            and not decision.is_ours
            and self._endpoints.has_lost_patience(connection, delivery.endpoint_id)
        ):
            reason = f"nothing was delivered for days; the last attempt: {decision.reason}"
        if reason is None:
            return
        disabled = self._endpoints.disable(
            connection, delivery.endpoint_id, reason, is_still_failing=isinstance(decision, GiveUp)
        )
        if disabled is not None:
            self._outbox.add_notice(connection, ENDPOINT_DISABLED, disabled_event(disabled))
            metrics.ENDPOINTS_DISABLED.inc()
            _log.warning("endpoint disabled", extra={"endpointId": str(disabled.id), "reason": reason})


def disabled_event(endpoint: CallbackEndpoint) -> dict[str, object]:
    """The notice that an endpoint was disabled, as a CloudEvent without id."""
    return {
        "source": "/api/v1/callback-endpoints",
        "type": "callback-endpoint.disabled",
        "subject": str(endpoint.id),
        "time": endpoint.disabled_at,
        "datacontenttype": "application/json",
        "data": {**endpoint.document(), "ownerId": endpoint.owner_id},
    }
