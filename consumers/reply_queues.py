"""Which queues are answered to: the sender names them, and we publish there, not he. Pure."""

import re
from functools import lru_cache

USER = "{user}"
"""In the pattern: the broker user whose message it is, as RabbitMQ has checked it."""

_OURS = re.compile(r"waybill\.|celeryev\.|.*\.pidbox$", re.IGNORECASE | re.DOTALL)


class ReplyQueues:
    """The names of ``WAYBILL_AMQP_REPLY_QUEUES``.

    Args:
        pattern: Regular expression of whole names.
    """

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern

    def admit(self, queue: str, user: str | None) -> bool:
        """Whether a message of ``user`` (None: it does not say whose it is) may be answered there."""
        if is_our_queue(queue):
            return False
        return _expression(self._pattern, user).fullmatch(queue) is not None


ANY_QUEUE = ReplyQueues(".*")


def is_our_queue(name: str) -> bool:
    """Whether a queue is the platform's or Celery's: nobody has answers published there."""
    return _OURS.match(name) is not None


@lru_cache(maxsize=1024)
def _expression(pattern: str, user: str | None) -> re.Pattern[str]:
    nobody = "(?!)"  # fits nothing
    return re.compile(pattern.replace(USER, nobody if user is None else re.escape(user)), re.DOTALL)
