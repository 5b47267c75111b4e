"""Celery's consumer without its native delayed delivery. What it consumes is in ``topology``."""

from celery.worker.consumer import Consumer


class PlainConsumer(Consumer):
    """Starts like Celery's own, one step shorter.

    Where a queue is a quorum queue, that step declares 28 exchanges and 28 more quorum queues. They serve
    ``eta`` and ``countdown``, which we do not use.
    """

    class Blueprint(Consumer.Blueprint):  # type: ignore[misc, valid-type] # the stubs call it a variable
        """The steps of its start."""

        default_steps = [
            step for step in Consumer.Blueprint.default_steps if not step.endswith(":DelayedDelivery")
        ]
