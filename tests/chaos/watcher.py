"""Watchers: clients that follow jobs, and put down every transition that they are told. Change nothing.

One kind follows single jobs by server-sent events and resumes by ``Last-Event-ID``; the other follows all
jobs of its user over the WebSocket and comes back with ``after``. Lines of the history:

    watching   a watch begins: its number, whose, of which job (None: all of the user's), after which sequence
    told       a transition came
    watched    all is told: the watch has come to its end (of single jobs: with the final state)
"""

import itertools
import json
import random
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import urllib3
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from tests.chaos.actor import Actor
from tests.chaos.garden import Garden
from tests.chaos.history import History
from tests.chaos.sessions import Sessions
from tests.chaos.user import User

_SILENCE_SECONDS = 6.0
"""After so long without a transition it connects again: the line may be dead."""
_PATIENCE_SECONDS = 40.0
"""A job that does not end within is left alone."""
_QUIET_SECONDS = 15.0
"""At rest, who follows and is told nothing for so long has been told everything."""
_CATCHING_UP_SECONDS = 120.0
"""Who does not come to that within has been told what there was for him to be told."""
_FAULTS = (urllib3.exceptions.HTTPError, WebSocketException, OSError, ValueError)
_numbers = itertools.count(1)


class Watcher(Actor):
    """Watches, connection after connection.

    Args:
        urls: Of the APIs; each connection goes to whichever.
        user: Whose jobs.
        sessions: Shared with the others.
        history: Told of everything.
        garden: Knows jobs.
        chance: Its own, seeded.
    """

    def __init__(
        self,
        urls: Sequence[str],
        user: User,
        sessions: Sessions,
        history: History,
        garden: Garden,
        chance: random.Random,
    ) -> None:
        super().__init__(
            patience_seconds=10 * _SILENCE_SECONDS
        )  # no further connections, but the present one
        self._urls = urls
        self._user = user
        self._sessions = sessions
        self._history = history
        self._garden = garden
        self._chance = chance

    @abstractmethod
    def _watch(self) -> None:
        """Watch for a while; raises one of the usual faults where the connection breaks."""

    def _take_turn(self) -> None:
        with suppress(*_FAULTS):
            self._watch()
        self._must_stop.wait(self._chance.uniform(0.2, 1))

    def _token(self, url: str) -> str:
        return self._sessions.token(url, self._user)

    def _begin(self, job: str | None, after: int | None) -> int:
        watch = next(_numbers)
        self._history.add("watching", watch=watch, user=self._user.name, job=job, after=after)
        return watch

    def _told(self, watch: int, sequence: int, job: Mapping[str, Any]) -> None:
        self._history.add(
            "told", watch=watch, sequence=sequence, job=job["id"], state=job["state"], done=job["done"]
        )


class EventWatcher(Watcher):
    """Follows one job after the other by server-sent events."""

    def _watch(self) -> None:
        errand = self._garden.errand(self._user.name, self._chance)
        if errand is None:
            return
        last = 0 if self._chance.random() < 0.5 else None
        watch = self._begin(errand.job, last)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline and not self._must_stop.is_set():
            with suppress(*_FAULTS):
                for sequence, job in self._events(errand.job, last):
                    self._told(watch, sequence, job)
                    last = sequence
                    if job["done"]:
                        self._history.add("watched", watch=watch)
                        return
            self._must_stop.wait(self._chance.uniform(0.1, 0.5))

    def _events(self, job: str, last: int | None) -> Iterator[tuple[int, Mapping[str, Any]]]:
        url = self._chance.choice(self._urls)
        token = self._token(url)
        headers = {"Authorization": f"Bearer {token}"}
        if last is not None:
            headers["Last-Event-ID"] = str(last)
        pool = urllib3.PoolManager(retries=False, timeout=_SILENCE_SECONDS)
        with pool.request(
            "GET", f"{url}/api/v1/jobs/{job}/events", headers=headers, preload_content=False
        ) as answer:
            if answer.status == 401:
                self._sessions.refuse(url, self._user, token)
            if answer.status != 200:
                return
            yield from _transitions(answer)


def _transitions(answer: urllib3.BaseHTTPResponse) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Whole events only: what a cut leaves of one is nothing."""
    pending = b""
    for piece in answer.stream(1024):
        pending += piece
        *whole, pending = pending.split(b"\n\n")
        for event in whole:
            fields = dict(line.split(b": ", 1) for line in event.split(b"\n") if b": " in line)
            if b"id" in fields and b"data" in fields:
                yield int(fields[b"id"]), json.loads(fields[b"data"])


class StreamWatcher(Watcher):
    """Follows all jobs of its user over the WebSocket, from the first on."""

    _last = 0
    _number = 0

    def catch_up(self, url: str) -> None:
        """At rest: be told what is left, and say that this was all."""
        until = time.monotonic() + _CATCHING_UP_SECONDS
        has_all = False
        while not has_all and time.monotonic() < until:
            with suppress(*_FAULTS):
                has_all = self._follow(url, _QUIET_SECONDS, is_last=True)
            time.sleep(0 if has_all else 1)
        self._history.add("watched", watch=self._number)

    def _watch(self) -> None:
        self._follow(self._chance.choice(self._urls), _SILENCE_SECONDS)

    def _follow(self, url: str, silence_seconds: float, *, is_last: bool = False) -> bool:
        """Be told until nothing comes; whether it is known that the server told all along.

        The ``is_last`` time a message that says nothing goes after the subscription, so that its refusal
        tells that the subscription stands; and it does not matter that this one is to stop.
        """
        token = self._token(url)
        self._number = self._number or self._begin(None, 0)
        address = url.replace("http", "ws", 1) + "/api/v1/stream"
        with connect(address, open_timeout=_SILENCE_SECONDS, close_timeout=1, ping_interval=None) as stream:
            stream.send(json.dumps({"token": token}))
            stream.send(json.dumps({"subscribe": "mine", "after": self._last}))
            if is_last:
                stream.send("{}")
            stands = False
            while True:
                try:
                    frame = json.loads(stream.recv(timeout=silence_seconds))
                except TimeoutError:
                    return stands
                if is_last and frame.get("status") == 400:
                    stands = True
                    continue
                if "sequence" not in frame:  # an error, and then the end of the conversation
                    if frame.get("status") == 401:
                        self._sessions.refuse(url, self._user, token)
                    return False
                self._told(self._number, frame["sequence"], frame["job"])
                self._last = frame["sequence"]
                if self._must_stop.is_set() and not is_last:
                    return False
