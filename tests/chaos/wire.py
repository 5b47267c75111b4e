"""The wire of one client of the workload: picks an API, sends again, times. What is sent: ``workload.py``."""

import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

import urllib3

from tests.chaos.history import History
from tests.chaos.sessions import Sessions
from tests.chaos.stopwatch import Stopwatch
from tests.chaos.user import User
from tests.kit.client import Client, Reply

ANSWER_SECONDS = 6.0
"""A client waits so long for an answer, and then does not know."""
RESENDS = 4
"""How often it sends at most what nobody answers."""

_BODILESS = (204, 304)


class Wire:
    """Speaks to the APIs for one user: now to this, now to that, as behind a balancer.

    Args:
        urls: The APIs'.
        user: Who logs in.
        sessions: Shared with the others.
        history: Whose clock counts.
        chance: Seeded.
        stopwatch: Times requests that do not wait on purpose.
        token: To begin with: a busy machine would hash passwords for longer than a client waits.
    """

    def __init__(
        self,
        urls: Sequence[str],
        user: User,
        sessions: Sessions,
        history: History,
        chance: random.Random,
        stopwatch: Stopwatch | None = None,
        token: str = "",
    ) -> None:
        self._clients = [Client(url, timeout_seconds=ANSWER_SECONDS) for url in urls]
        self._client = chance.choice(self._clients)
        self._user = user
        self._sessions = sessions
        self._history = history
        self._chance = chance
        self._stopwatch = stopwatch

    def turn(self) -> None:
        """Go on with whichever API."""
        self._client = self._chance.choice(self._clients)

    def persist(
        self, method: str, path: str, body: Any, headers: Mapping[str, str], key: str | None
    ) -> tuple[Reply | None, bool]:
        """Send until it is answered, where a key makes that safe.

        Returns:
            The last answer, None where there was none; and whether it was the first sending's.
        """
        reply, attempt = None, 0
        for attempt in range(RESENDS if key and self._chance.random() < 0.8 else 1):
            if attempt:
                time.sleep(self._chance.uniform(0.05, 0.5))
                self.turn()
            try:
                reply = self.call(method, path, body, headers)
            except urllib3.exceptions.HTTPError:
                reply = None
                continue
            if reply.status < 500:
                break
        return reply, attempt == 0

    def call(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Send once, logged in.

        Raises:
            urllib3.exceptions.HTTPError: No answer, or not all of one.
        """
        client = self._client
        client.token = self._sessions.token(client.url, self._user)
        reply = self._timed(method, path, body, headers)
        if reply.status == 401:  # refused for certain: nothing of it has happened
            self._sessions.refuse(client.url, self._user, client.token)
            client.token = self._sessions.token(client.url, self._user)
            reply = self._timed(method, path, body, headers)
        if reply.status == 401:
            raise urllib3.exceptions.HTTPError("not let in: its clock is behind the database's")
        if reply.status not in _BODILESS and str(len(reply.body)) != reply.headers.get("content-length"):
            raise urllib3.exceptions.HTTPError("cut off in its head, which Python's client takes for its end")
        return reply

    def _timed(self, method: str, path: str, body: Any, headers: Mapping[str, str] | None) -> Reply:
        asked, status = self._history.now(), 0
        try:
            reply = self._client.call(method, path, body, headers)
            status = reply.status
        finally:
            waits = (headers or {}).get("Prefer", "").startswith("wait")
            if self._stopwatch is not None:
                is_error = status == 0 or status >= 500
                self._stopwatch.note(asked, self._history.now() - asked, is_error=is_error, waits=waits)
        return reply
