"""The redriver: an admin whose jobs die honestly, and who redrives most of them. What dies: ``brittle.py``.

Lines of the history, beside those of every operation: ``redriving`` (a redrive of a job was asked for).
"""

import random
import uuid
from collections.abc import Sequence
from contextlib import suppress

import urllib3

from tests.chaos.actor import Actor
from tests.chaos.brittle import NAME
from tests.chaos.history import History
from tests.chaos.sessions import Sessions
from tests.chaos.user import User
from tests.kit.client import Client, Reply

_PAUSE_SECONDS = 2.0
_MOST = 40
"""Jobs: each that dies holds up nobody, and is a row in everybody's list."""
_LEFT_DEAD = 0.2


class Redriver(Actor):
    """Makes jobs which die, and redrives them as soon as it sees them dead.

    Args:
        urls: Of the APIs.
        user: An admin.
        sessions: Shared with the others.
        history: Told of everything.
        chance: Its own, seeded.
    """

    def __init__(
        self,
        urls: Sequence[str],
        user: User,
        sessions: Sessions,
        history: History,
        chance: random.Random,
    ) -> None:
        super().__init__()
        self._clients = [Client(url, timeout_seconds=6) for url in urls]
        self._user = user
        self._sessions = sessions
        self._history = history
        self._chance = chance
        self._dying: dict[str, bool] = {}  # whether it is to be redriven

    def _take_turn(self) -> None:
        # An operation without an answer has an unknown outcome; a look without one brought nothing.
        with suppress(urllib3.exceptions.HTTPError):
            if len(self._dying) < _MOST:
                self._create()
            for job in [job for job, is_wanted in self._dying.items() if is_wanted]:
                self._look_at(job)
        self._must_stop.wait(self._chance.uniform(0, 2 * _PAUSE_SECONDS))

    def _create(self) -> None:
        entity = str(uuid.uuid4())
        op = self._history.invoke(
            "create", user=self._user.name, entity=entity, via="redriver", is_brittle=True
        )
        body = {"id": entity, "metadata": {f"n-{op}": op}, "isBroken": True}
        reply = self._call("POST", NAME, body, {"X-Request-ID": f"chaos-op-{op}"})
        if reply.status == 202:
            self._history.add("ok", op=op, job=reply.json["id"])
            self._dying[reply.json["id"]] = self._chance.random() > _LEFT_DEAD
        else:
            self._history.add("fail" if reply.status < 500 else "unknown", op=op, status=reply.status)

    def _look_at(self, job: str) -> None:
        """Redrive it where it is dead; and again, where that was not answered and it is still dead."""
        shown = self._call("GET", f"jobs/{job}")
        if shown.status != 200 or self._must_stop.is_set():
            return
        if shown.json["state"] == "succeeded":
            self._dying[job] = False
        elif shown.json["state"] == "dead":
            self._history.add("redriving", job=job)
            self._call("POST", f"jobs/{job}/redrive", {"reason": "mended", "patch": {"isBroken": False}})

    def _call(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> Reply:
        client = self._chance.choice(self._clients)
        client.token = self._sessions.token(client.url, self._user)
        reply = client.call(method, path, body, headers)
        if reply.status == 401:
            self._sessions.refuse(client.url, self._user, client.token)
            client.token = self._sessions.token(client.url, self._user)
            reply = client.call(method, path, body, headers)
        if reply.status == 401:
            raise urllib3.exceptions.HTTPError("not let in")
        return reply
