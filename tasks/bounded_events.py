"""Celery's worker events (for Flower), sent with bounded patience. Which are sent: ``app``."""

from typing import Any

from celery.app.events import Events
from celery.events.dispatcher import EventDispatcher

PATIENCE: dict[str, Any] = {"max_retries": 2, "interval_start": 0, "interval_step": 0.5, "interval_max": 1}
"""As kombu takes it: then the event is kept, and goes out once the next one has found the broker."""


class BoundedDispatcher(EventDispatcher):
    """Celery's, which does not try for ever.

    A worker sends its heartbeats from the loop that takes its messages. Celery's own lets kombu try without a
    bound, and kombu (5.6), once it has lost sight of a connection whose channel is still in use, declares the
    exchange on that channel again and again: the worker lives, connects, and never takes a message (seen).
    """

    def send(self, type: str, *arguments: Any, **fields: Any) -> Any:
        """Send an event, or keep it for later."""
        return super().send(type, *arguments, **{"retry_policy": PATIENCE, **fields})


class BoundedEvents(Events):
    """Makes these dispatchers."""

    dispatcher_cls = f"{__name__}:{BoundedDispatcher.__name__}"
