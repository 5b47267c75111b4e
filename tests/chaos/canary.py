"""The canary: creates an entity and waits for it, to tell when the platform works again after a fault."""

import time
import uuid
from collections.abc import Sequence

import urllib3

from tests.chaos.history import History
from tests.chaos.sessions import Sessions
from tests.chaos.user import User
from tests.kit.client import Client

USER = "canary"
PATIENCE_SECONDS = 180.0
"""Generous: that it works again at all is the question."""


class Canary:
    """Asks the APIs themselves, past the clients' links.

    Args:
        urls: The APIs'.
        user: Who it is there; in the history it goes by a name of its own.
        sessions: Shared with the others.
        history: Its operations are operations like others.
        token: To begin with.
    """

    def __init__(self, urls: Sequence[str], user: User, sessions: Sessions, history: History) -> None:
        self._clients = [Client(url, timeout_seconds=8) for url in urls]
        self._user = user
        self._sessions = sessions
        self._history = history

    def sings_after(self) -> float | None:
        """Seconds until a job that was sent from now on succeeded, by each API; None: not in time."""
        began = time.monotonic()
        silent = list(self._clients)
        while time.monotonic() - began < PATIENCE_SECONDS:
            silent = [client for client in silent if not self._try(client)]
            if not silent:
                return time.monotonic() - began
            time.sleep(0.2)
        return None

    def _try(self, client: Client) -> bool:
        try:
            client.token = self._sessions.token(client.url, self._user)
        except urllib3.exceptions.HTTPError:
            return False
        entity = str(uuid.uuid4())
        op = self._history.invoke("create", user=USER, entity=entity, via="canary")
        body = {"id": entity, "name": "canary", "metadata": {f"n-{op}": op}}
        headers = {"Prefer": "wait=5", "X-Request-ID": f"chaos-op-{op}"}
        try:
            answer = client.call("POST", "entities", body, headers)
        except urllib3.exceptions.HTTPError:
            self._history.add("unknown", op=op)
            return False
        if answer.status == 201:
            self._history.add("ok", op=op, state="succeeded", version=1)
            return True
        if answer.status == 202:
            self._history.add("ok", op=op, job=answer.json["id"])
        else:
            if answer.status == 401:
                self._sessions.refuse(client.url, self._user, client.token)
            self._history.add("fail" if answer.status < 500 else "unknown", op=op, status=answer.status)
        return False
