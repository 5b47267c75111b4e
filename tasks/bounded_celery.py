"""Those parts of Celery that would try to reach the broker for ever, with bounded patience.

A worker sends its heartbeats, and answers what Flower asks it, from the loop that takes its messages.
Celery's own let kombu try without a bound; and kombu (5.6), once it has lost sight of a connection whose
channel is still in use, declares the exchange on that channel again and again: the worker lives, connects,
and never takes a message (seen).
"""

from typing import Any

from celery.app.control import Control
from celery.app.events import Events
from celery.events.dispatcher import EventDispatcher
from kombu.pidbox import Mailbox

PATIENCE: dict[str, Any] = {"max_retries": 2, "interval_start": 0, "interval_step": 0.5, "interval_max": 1}
"""As kombu takes it."""


class BoundedDispatcher(EventDispatcher):
    """Sends worker events. One that does not find the broker is kept, and goes out once a later one does."""

    def send(self, type: str, *arguments: Any, **fields: Any) -> Any:
        """Send an event, or keep it for later."""
        return super().send(type, *arguments, **{"retry_policy": PATIENCE, **fields})


class BoundedEvents(Events):
    """Makes these dispatchers."""

    dispatcher_cls = f"{__name__}:{BoundedDispatcher.__name__}"


class BoundedMailbox(Mailbox):
    """Takes what Flower asks. An answer that does not find the broker is lost: whoever asks, asks again."""

    def _publish_reply(self, *arguments: Any, **options: Any) -> None:
        super()._publish_reply(*arguments, **{"retry_policy": PATIENCE, **options})


class BoundedControl(Control):
    """Makes these mailboxes."""

    Mailbox = BoundedMailbox
