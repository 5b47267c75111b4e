"""A client of the workload: writes, reads, cancels, looks, and puts all of it down in a history.

Each write leaves a nonce of its own in its entity's metadata (``{"n-17": 17}`` by operation 17), so that a
witness inside the database can tell which operations took effect. What many do together: ``crowd.py``.
Over AMQP: ``upstream.py``.
"""

import random
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import urllib3

from tests.chaos.garden import Errand, Garden, Plot
from tests.chaos.history import History
from tests.chaos.user import User
from tests.chaos.wire import Wire

Item = tuple[str, int, Plot, dict[str, Any]]
"""Of a bulk: what is done, its operation's number, to what, and with which data."""
_NOTED = 10
"""Of a page so many are put down: all of them would be most of what a history holds."""
_ELSEWHERE = 0.3
"""So many acts go to whichever API."""


class Worker:
    """One client: does one thing after the other.

    Args:
        wire: Its own.
        user: For whom it works.
        history: Told of everything.
        garden: Shared with the others.
        chance: Its own, seeded.
        others: Users whose entities it must never see.
        reads: The share of its acts that only look.
    """

    def __init__(
        self,
        wire: Wire,
        user: User,
        history: History,
        garden: Garden,
        chance: random.Random,
        others: Sequence[User] = (),
        reads: float = 0.3,
    ) -> None:
        self._wire = wire
        self._user = user
        self._others = others
        self._history = history
        self._garden = garden
        self._chance = chance
        writes = [
            (self.patch, 36),
            (self.replace, 4),
            (self.create, 12),
            (self.bulk, 4),
            (self.delete, 3),
            (self.create_again, 3),
            (self.schedule, 5),
            (self.expire, 2),
            (self.cancel, 4),
        ]
        looks = [
            (self.look, 12),
            (self.read, 16),
            (self.list_entities, 3),
            (self.list_jobs, 1),
            (self.peep, 2),
        ]
        self._acts: list[tuple[Callable[[], None], float]] = [
            *((act, weight * (1 - reads) / sum(one for _, one in writes)) for act, weight in writes),
            *((act, weight * reads / sum(one for _, one in looks)) for act, weight in looks),
        ]

    def act(self) -> None:
        """Do something, by chance. Never raises for what the platform does."""
        if self._chance.random() < _ELSEWHERE:
            self._wire.turn()
        acts, weights = zip(*self._acts, strict=True)
        (act,) = self._chance.choices(acts, weights)
        try:
            act()
        except urllib3.exceptions.HTTPError:
            return  # a look that brought nothing; what writes tells for itself

    # ---- writes ------------------------------------------------------------------------

    def create(self) -> None:
        """Sow a new entity."""
        plot = self._garden.sow(self._user.name)
        self._create(plot)
        self._garden.grow(plot)

    def create_again(self) -> None:
        """Sow what was deleted: its version must go on."""
        plot = self._garden.pick_cleared(self._user.name, self._chance)
        if plot is None:
            return self.create()
        self._create(plot)
        self._garden.grow(plot)
        return None

    def patch(self) -> None:
        """Append a nonce; at times on the condition that the entity is as it was seen."""
        plot = self._picked()
        if plot is None:
            return self.create()
        if_match = plot.version if plot.version and self._chance.random() < 0.15 else None
        headers = {"If-Match": f'"{if_match}"'} if if_match is not None else {}
        self._write("patch", plot, "PATCH", f"entities/{plot.entity}", headers=headers, if_match=if_match)
        return None

    def replace(self) -> None:
        """Put the whole entity as it was read, and a nonce, on the condition that it is still so.

        Without the condition it would wipe out the nonces of what it had not seen.
        """
        plot = self._picked()
        if plot is None:
            return
        reply = self._wire.call("GET", f"entities/{plot.entity}")
        if reply.status != 200:
            return
        seen = reply.json
        body = {name: seen[name] for name in ("name", "description", "metadata") if seen.get(name)}
        path, headers = f"entities/{plot.entity}", {"If-Match": reply.headers["etag"]}
        self._write("replace", plot, "PUT", path, headers=headers, body=body, if_match=seen["version"])

    def delete(self) -> None:
        """Clear an entity away."""
        plot = self._picked()
        if plot is None or not self._garden.clear(plot):
            return
        self._write("delete", plot, "DELETE", f"entities/{plot.entity}")

    def schedule(self) -> None:
        """Append a nonce later."""
        plot = self._picked()
        if plot is not None:
            at = _moment(self._chance.uniform(0.5, 8))
            headers = {"Waybill-Run-At": at}
            self._write("patch", plot, "PATCH", f"entities/{plot.entity}", headers=headers, run_at=at)

    def expire(self) -> None:
        """Append a nonce, but not too late."""
        plot = self._picked()
        if plot is not None:
            at = _moment(self._chance.uniform(0.3, 3))
            headers = {"Waybill-Expires-At": at}
            self._write("patch", plot, "PATCH", f"entities/{plot.entity}", headers=headers, expires_at=at)

    def bulk(self) -> None:
        """Several at once: some in one lane, in order."""
        plot = self._picked()
        if plot is None:
            return
        key = f"bulk-{self._user.name}-{self._chance.getrandbits(64):x}"
        items = [self._item(plot, place, key) for place in range(self._chance.randint(2, 12))]
        if self._chance.random() < 0.4:  # a large one, mostly of new entities
            items += [self._sown(place, key) for place in range(len(items), self._chance.randint(20, 150))]
        body = {
            "operations": [
                {"operation": kind, "resource": "entities", "id": into.entity, "data": data}
                for kind, _, into, data in items
            ]
        }
        reply, is_first = self._wire.persist("POST", "bulk", body, {"Idempotency-Key": key}, key)
        if reply is None or reply.status >= 400:
            for _, op, _, _ in items:
                self._refused(op, reply.status if reply else None, is_first=is_first)
            return
        for (_, op, _, _), place in zip(items, reply.json["jobs"], strict=True):
            if "error" in place and "index" in place:
                self._refused(op, place["error"]["status"], is_first=is_first)
            else:
                self._accepted(op, place, is_scheduled=False)

    def _item(self, plot: Plot, place: int, key: str) -> Item:
        into = plot if self._chance.random() < 0.6 else (self._picked() or plot)
        op = self._invoke("patch", into, key=f"{key}#{place}", bulk=key)
        return "patch", op, into, _data(op)

    def _sown(self, place: int, key: str) -> Item:
        plot = self._garden.sow(self._user.name)
        op = self._invoke("create", plot, key=f"{key}#{place}", bulk=key)
        return "create", op, plot, {"name": f"sown by {op}", **_data(op)}

    def cancel(self) -> None:
        """Withdraw a job, mostly one that waits for its time."""
        errand = self._garden.errand(self._user.name, self._chance, is_scheduled=self._chance.random() < 0.8)
        if errand is None:
            return
        since = self._history.now()
        self._history.add("withdraw", job=errand.job)
        reply = self._wire.call("POST", f"jobs/{errand.job}/cancel")
        if reply.status == 200:
            self._saw(reply.json, errand.job, since)

    def _create(self, plot: Plot) -> None:
        self._write("create", plot, "POST", "entities")

    def _write(
        self,
        kind: str,
        plot: Plot,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: dict[str, Any] | None = None,
        **facts: Any,
    ) -> None:
        """Send a write, again and again under its key if it has one, and put down what was answered."""
        chance = self._chance
        has_callback = chance.random() < 0.3
        key = f"k-{chance.getrandbits(96):x}" if chance.random() < 0.75 else None
        waits = chance.random() < 0.15
        op = self._invoke(kind, plot, key=key, callback=has_callback, **facts)
        sent = {"X-Request-ID": f"chaos-op-{op}", **(headers or {})}
        if has_callback:
            sent["Waybill-Callback"] = self._user.endpoint
        if key:
            sent["Idempotency-Key"] = key
        if waits:
            sent["Prefer"] = "wait=3"
        if chance.random() < 0.3:  # one lane's jobs are then announced on several queues
            sent["Waybill-Priority"] = chance.choice(["high", "bulk"])
        if kind == "create":
            body = {"id": plot.entity, "name": f"sown by {op}"}
        if kind != "delete":
            body = {**(body or {}), **_data(op, (body or {}).get("metadata"))}
        reply, is_first = self._wire.persist(method, path, body, sent, key)
        if reply is None or reply.status >= 400:
            self._refused(op, reply.status if reply else None, is_first=is_first)
        elif reply.status == 202:
            self._accepted(op, reply.json, is_scheduled="run_at" in facts)
            if key and chance.random() < 0.05:
                self._send_again(op, method, path, body, sent, reply.json["id"])
        else:
            version = int(reply.headers.get("etag", '"0"').strip('"')) or None
            self._history.add("ok", op=op, state="succeeded", version=version)
            if version:
                self._garden.note_version(plot.entity, version)
            if kind != "delete" and chance.random() < 0.5:
                self._read_one(plot)  # what it has just been told

    def _send_again(
        self, op: int, method: str, path: str, body: Any, headers: Mapping[str, str], job: str
    ) -> None:
        """A duplicate of a request that was accepted, by whichever API: it must be the same job."""
        self._wire.turn()
        reply = self._wire.call(method, path, body, {**headers, "Prefer": "respond-async"})
        if reply.status == 202:
            self._history.add("replayed", op=op, job=reply.json["id"], first=job)

    def _invoke(self, kind: str, plot: Plot, **facts: Any) -> int:
        given = {name: value for name, value in facts.items() if value is not None}
        return self._history.invoke(kind, user=self._user.name, entity=plot.entity, via="http", **given)

    def _refused(self, op: int, status: int | None, *, is_first: bool) -> None:
        """A refusal is certain only of the first sending: an earlier one may still arrive."""
        is_certain = is_first and status is not None and status < 500
        self._history.add("fail" if is_certain else "unknown", op=op, status=status)

    def _accepted(self, op: int, job: Mapping[str, Any], *, is_scheduled: bool) -> None:
        self._history.add("ok", op=op, job=job["id"])
        self._garden.remember(Errand(job["id"], op, self._user.name, is_scheduled))

    def _picked(self) -> Plot | None:
        return self._garden.pick(self._user.name, self._chance)

    # ---- looks -------------------------------------------------------------------------

    def look(self) -> None:
        """Ask after a job."""
        errand = self._garden.errand(self._user.name, self._chance)
        if errand is None:
            return
        since = self._history.now()
        headers = {"Prefer": "wait=2"} if self._chance.random() < 0.2 else None
        reply = self._wire.call("GET", f"jobs/{errand.job}", headers=headers)
        if reply.status == 200:
            self._saw(reply.json, errand.job, since)
        elif reply.status < 500:
            self._history.add("lost", job=errand.job, status=reply.status, user=self._user.name)

    def read(self) -> None:
        """Read an entity."""
        plot = self._picked()
        if plot is not None:
            self._read_one(plot)

    def _read_one(self, plot: Plot) -> None:
        since = self._history.now()
        reply = self._wire.call("GET", f"entities/{plot.entity}")
        if reply.status == 200:
            self._read(reply.json, plot.entity, since)
        elif reply.status < 500:
            self._history.add(
                "read", since=since, user=self._user.name, entity=plot.entity, status=reply.status
            )

    def list_entities(self) -> None:
        """Read a page of entities."""
        since = self._history.now()
        reply = self._wire.call("GET", "entities?limit=30&sort=-createdAt")
        if reply.status == 200:
            for item in self._some(reply.json["items"]):
                self._read(item, None, since)

    def list_jobs(self) -> None:
        """Read a page of jobs."""
        since = self._history.now()
        reply = self._wire.call("GET", "jobs?limit=50")
        if reply.status == 200:
            for item in self._some(reply.json["items"]):
                self._saw(item, None, since)

    def _some(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return self._chance.sample(items, min(_NOTED, len(items)))

    def peep(self) -> None:
        """Try to read what is somebody else's: it must not be there."""
        other = self._chance.choice(list(self._others)) if self._others else None
        plot = self._garden.pick(other.name, self._chance) if other else None
        if plot is not None:
            reply = self._wire.call("GET", f"entities/{plot.entity}")
            if reply.status < 400:
                self._history.add("foreign", user=self._user.name, entity=plot.entity, status=reply.status)

    def collect(self) -> None:
        """Every job of this user, page after page. Raises where a page does not come."""
        path: str | None = "jobs?limit=100"
        while path is not None:
            since = self._history.now()
            reply = self._wire.call("GET", path)
            assert reply.status == 200, reply.body
            for item in reply.json["items"]:
                self._saw(item, None, since, is_last=True)
            cursor = reply.json["nextCursor"]
            path = None if cursor is None else f"jobs?limit=100&cursor={cursor}"

    def _saw(self, job: Mapping[str, Any], asked: str | None, since: float, *, is_last: bool = False) -> None:
        """Put down a job as it was shown."""
        facts: dict[str, Any] = {
            "since": round(since, 6),
            "user": self._user.name,
            "job": job["id"],
            "state": job["state"],
            "done": job["done"],
            "operation": job["operation"],
            "entity": job["resourceId"],
            "sequence": job["sequence"],
            "request": job["requestId"],
        }
        if job.get("version") is not None:
            facts["version"] = job["version"]
            self._garden.note_version(job["resourceId"], job["version"])
        if isinstance(job.get("result"), dict):
            facts["nonces"] = _nonces(job["result"])
        if job.get("error"):
            facts["status"] = job["error"].get("status")
        if job.get("finishedAt"):
            facts["finished"] = job["finishedAt"]
        if asked is not None:
            facts["asked"] = asked
        if is_last:
            facts["last"] = True
        self._history.add("seen", **facts)

    def _read(self, entity: Mapping[str, Any], asked: str | None, since: float) -> None:
        self._garden.note_version(entity["id"], entity["version"])
        self._history.add(
            "read",
            since=round(since, 6),
            user=self._user.name,
            entity=asked or entity["id"],
            shown=entity["id"],
            owner=entity["ownerId"],
            version=entity["version"],
            nonces=_nonces(entity),
            status=200,
        )


def _data(op: int, beside: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"metadata": {**(beside or {}), f"n-{op}": op}}


def _nonces(entity: Mapping[str, Any]) -> list[str]:
    return sorted(sys.intern(name) for name in entity.get("metadata") or {} if name.startswith("n-"))


def _moment(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
