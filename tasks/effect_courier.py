"""The courier for effects on third parties: builds each call once, sends it, falls back where refused."""

import logging
from collections.abc import Callable, Mapping
from datetime import timedelta

from sqlalchemy import Connection

from models import failpoints
from models.deliveries.delivery_policy import Answer, Decision, decide_effect
from models.deliveries.outbox import Delivery, Outbox
from models.effects import LONGEST_PATIENCE, ThirdPartyEffect, applied_change, service_call
from models.failpoints import Step
from tasks.courier import NotNow, Receiver
from tasks.service_client import ServiceClient

_log = logging.getLogger("waybill.effects")
_UNKNOWN = "no worker could build its call: is the effect still declared?"


class EffectCourier:
    """Sends effects.

    Args:
        effects: Every effect that this worker knows, by resource and name.
        clients: One for each third party.
        outbox: Keeps calls, takes fallbacks.
    """

    def __init__(
        self,
        effects: Mapping[tuple[str, str], ThirdPartyEffect],
        clients: Mapping[str, ServiceClient],
        outbox: Outbox,
    ) -> None:
        self._effects = effects
        self._clients = clients
        self._outbox = outbox

    def receiver(self, delivery: Delivery) -> Receiver:
        """The service. What this worker does not know waits in a line of its own."""
        effect = self._effect(delivery)
        if effect is None:
            return Receiver(f"effect:{delivery.target}", 1)
        client = self._clients.get(effect.service)
        return Receiver(effect.dependency, 1 if client is None else client.at_once)

    def obstacle(self, connection: Connection, delivery: Delivery) -> str | None:
        """Nobody has known it for as long as any effect is tried. One that is known may go, however late."""
        is_late = delivery.age >= LONGEST_PATIENCE
        return _UNKNOWN if is_late and self._effect(delivery) is None else None

    def prepared(self, connection: Connection, delivery: Delivery) -> Delivery | None:
        """With its call, which is built from the job's outcome at the first attempt and then kept.

        Raises:
            NotNow: The effect is unknown here, or its own code fails.
        """
        effect = self._known(delivery)
        if delivery.body is not None:
            return delivery
        event = self._outbox.events(connection, delivery.sequences).get(delivery.sequences[0])
        if event is None:
            raise NotNow("its job is past its retention")
        try:
            call = effect.call(applied_change(event.job, delivery.error))
            kept = None if call is None else call.to_bytes()
        except Exception as error:  # whatever a resource's own code does
            _log.exception("an effect's call cannot be built", extra={"jobId": str(delivery.job_id)})
            raise NotNow(f"effect {effect.name}: {type(error).__name__}") from error
        return None if kept is None else self._outbox.keep_body(connection, delivery, kept)

    def send(self, delivery: Delivery) -> Answer:
        """Under a key of the job and the effect, the same at every attempt."""
        effect = self._known(delivery)
        client = self._clients.get(effect.service)
        if client is None:
            raise NotNow(f"WAYBILL_SERVICES names no {effect.service}")
        failpoints.before(Step.SEND_EFFECT)
        answer = client.send(service_call(delivery.body or b"null"), f"{delivery.job_id}.{effect.name}")
        failpoints.after(Step.SEND_EFFECT)
        return answer

    def decide(self, delivery: Delivery, answer: Answer, random: Callable[[], float]) -> Decision:
        """As the policy has it, within the effect's own time."""
        patience = self.patience(delivery) or LONGEST_PATIENCE
        return decide_effect(
            answer, attempts=delivery.attempts + 1, age=delivery.age, give_up_after=patience, random=random
        )

    def patience(self, delivery: Delivery) -> timedelta | None:
        """As declared: the fallback does not wait for a breaker."""
        effect = self._effect(delivery)
        return None if effect is None else effect.give_up_after

    def given_up(self, connection: Connection, delivery: Delivery, decision: Decision) -> None:
        """Write the fallback, if one is declared."""
        effect = self._effect(delivery)
        if effect is not None and effect.fallback is not None:
            reason = str(getattr(decision, "reason", ""))
            self._outbox.add_effect(connection, delivery, effect.fallback.name, reason)

    def _effect(self, delivery: Delivery) -> ThirdPartyEffect | None:
        return self._effects.get((delivery.resource or "", delivery.target or ""))

    def _known(self, delivery: Delivery) -> ThirdPartyEffect:
        effect = self._effect(delivery)
        if effect is None:
            raise NotNow(f"this worker knows no effect {delivery.target} of {delivery.resource}")
        return effect
