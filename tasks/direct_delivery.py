"""Callbacks while the broker is away: claimed and sent by the sweeping process itself, without a message."""

import logging
from collections.abc import Callable

from models.database import Database
from models.deliveries.outbox import Outbox
from models.failpoints import Step
from tasks.sending import Sending

AT_ONCE = 200
"""Deliveries claimed by one look, at most."""
CLOSE_SECONDS = 3

_log = logging.getLogger("waybill.sweeper")


class DirectDelivery:
    """Sends what is due over HTTP from this process. What leaves by AMQP waits for the broker.

    Claims are the same as everywhere, so nobody sends twice at once, whoever learns first that the broker
    is back.

    Args:
        database: One of this process's own.
        outbox: Knows what is due, and claims it.
        make_sending: Makes what sends; called at the first outage, so that most processes never need one.
    """

    def __init__(self, database: Database, outbox: Outbox, make_sending: Callable[[], Sending]) -> None:
        self._database = database
        self._outbox = outbox
        self._make_sending = make_sending
        self._sending: Sending | None = None

    def deliver(self) -> int:
        """Hand over what is due; how much that was. Waits for no receiver.

        Raises:
            DatabaseUnavailable: They are announced, or looked for, again.
        """
        with self._database.transaction(Step.CLAIM_DIRECTLY) as connection:
            due = self._outbox.due(connection, AT_ONCE, only_over_http=True)
            claimed = self._outbox.claim(connection, due) if due else []
        if claimed:
            if self._sending is None:
                self._sending = self._make_sending()
            self._sending.hand_over(claimed)
            _log.info("delivering without the broker", extra={"deliveries": len(claimed)})
        return len(claimed)

    def close(self) -> None:
        """Give back what was not begun."""
        if self._sending is not None:
            self._sending.close(CLOSE_SECONDS)
