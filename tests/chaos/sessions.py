"""Access tokens of the harness' clients: one for each user and API, shared, so that few log in.

A password's hash costs much on purpose: were every client to log in by itself when tokens are refused
(a clock that jumped), a small machine would do nothing else.
"""

import threading
import time

import urllib3

from tests.chaos.user import User
from tests.kit.client import Client

_PAUSE_SECONDS = 1.0
"""Between two log-ins that failed."""


class Sessions:
    """Shared by all clients.

    Args:
        timeout_seconds: How long to wait for an answer.
    """

    def __init__(self, timeout_seconds: float = 6.0) -> None:
        self._timeout_seconds = timeout_seconds
        self._tokens: dict[tuple[str, str], str] = {}
        self._failed_at: dict[tuple[str, str], float] = {}
        self._locks: dict[tuple[str, str], threading.Lock] = {}
        self._lock = threading.Lock()

    def token(self, url: str, user: User) -> str:
        """A token that this API gave this user.

        Raises:
            HTTPError: It gives none now.
        """
        place = (url, user.email)
        with self._lock:
            lock = self._locks.setdefault(place, threading.Lock())
        with lock:
            known = self._tokens.get(place, "")
            if known:
                return known
            if time.monotonic() < self._failed_at.get(place, 0) + _PAUSE_SECONDS:
                raise urllib3.exceptions.HTTPError("no log-in a moment ago")
            try:
                self._tokens[place] = self._log_in(url, user)
            except urllib3.exceptions.HTTPError:
                self._failed_at[place] = time.monotonic()
                raise
            return self._tokens[place]

    def refuse(self, url: str, user: User, token: str) -> None:
        """This API no longer takes this token: the next one is a fresh one, where there is none yet."""
        with self._lock:
            if self._tokens.get((url, user.email)) == token:
                del self._tokens[url, user.email]

    def _log_in(self, url: str, user: User) -> str:
        client = Client(url, timeout_seconds=self._timeout_seconds)
        answer = client.call("POST", "/auth/login", {"email": user.email, "password": user.password})
        if answer.status != 200:
            raise urllib3.exceptions.HTTPError(f"no log-in: {answer.status}")
        return str(answer.json["accessToken"])
