"""The canary: creates an entity and waits for it, to tell when the platform works again after a fault."""

import time
import uuid

import urllib3

from tests.chaos.arena import ADMIN, PASSWORD
from tests.chaos.history import History
from tests.kit.client import Client

USER = "canary"
PATIENCE_SECONDS = 180.0
"""Generous: that it works again at all is the question."""


class Canary:
    """Asks the API itself, past the clients' link.

    Args:
        url: The API's.
        history: Its operations are operations like others.
        token: To begin with.
    """

    def __init__(self, url: str, history: History, token: str) -> None:
        self._client = Client(url, token, timeout_seconds=8)
        self._history = history

    def sings_after(self) -> float | None:
        """Seconds until a job that was sent from now on succeeded; None where none did in time."""
        began = time.monotonic()
        while time.monotonic() - began < PATIENCE_SECONDS:
            if self._try():
                return time.monotonic() - began
            time.sleep(0.2)
        return None

    def _try(self) -> bool:
        try:
            if not self._client.token:
                answer = self._client.call("POST", "/auth/login", {"email": ADMIN, "password": PASSWORD})
                if answer.status != 200:
                    return False
                self._client.token = answer.json["accessToken"]
        except urllib3.exceptions.HTTPError:
            return False
        entity = str(uuid.uuid4())
        op = self._history.invoke("create", user=USER, entity=entity, via="canary")
        body = {"id": entity, "name": "canary", "metadata": {f"n-{op}": op}}
        headers = {"Prefer": "wait=5", "X-Request-ID": f"chaos-op-{op}"}
        try:
            answer = self._client.call("POST", "entities", body, headers)
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
                self._client.token = ""
            self._history.add("fail" if answer.status < 500 else "unknown", op=op, status=answer.status)
        return False
