"""An upstream system of the workload: publishes over AMQP and takes its replies. HTTP: ``workload.py``."""

import json
import random
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pika
from pika.exceptions import AMQPError

from tests.chaos.actor import Actor
from tests.chaos.broker import nodes_of
from tests.chaos.garden import Plot
from tests.chaos.history import History
from tests.kit.upstream import Upstream

_FAULTS = (AMQPError, OSError)


class UpstreamSystem(Actor):
    """One publisher, which connects again whenever it must.

    A confirmed message may still be lost while the broker is wiped: the platform answers for it only once it
    has acknowledged it. So an operation is ``ok`` when a reply names its job, and ``unknown`` without one.
    What the broker confirmed is ``confirmed``: it must have been taken in, or refused, unless that is wiped.

    Args:
        url: The broker's, or its nodes', separated by ``;``.
        user: For whom ``WAYBILL_AMQP_PRINCIPALS`` lets it speak.
        rate: Messages a second.
    """

    def __init__(self, url: str, user: str, history: History, chance: random.Random, rate: float) -> None:
        super().__init__()
        self._url = url
        self._user = user
        self._history = history
        self._chance = chance
        self._pause = 1 / rate
        self._plots: list[Plot] = []
        self._open: dict[str, int] = {}
        self._jobs: dict[int, str | None] = {}

    def stop(self) -> None:
        """No new messages; what was not answered is unknown."""
        super().stop()
        for op in self._open.values():
            if op not in self._jobs:
                self._history.add("unknown", op=op)

    def _take_turn(self) -> None:
        try:
            self._serve()
        except _FAULTS:
            self._must_stop.wait(0.5)

    def _serve(self) -> None:
        connection = pika.BlockingConnection(nodes_of(self._url))
        upstream = Upstream(connection, "waybill")
        try:
            while not self._must_stop.is_set():
                self._publish(upstream)
                self._take_replies(upstream)
                self._must_stop.wait(self._chance.uniform(0, 2 * self._pause))
            for _ in range(20):  # the last replies
                self._take_replies(upstream)
                connection.sleep(0.1)
        finally:
            _quietly(upstream.close)

    def _publish(self, upstream: Upstream) -> None:
        self._plots = [one for one in self._plots if not one.is_cleared]
        is_new = not self._plots or self._chance.random() < 0.25
        if is_new:
            self._plots = [*self._plots[-8:], Plot(str(uuid.uuid4()), self._user)]
        plot = self._plots[-1] if is_new else self._chance.choice(self._plots)
        kind = "create" if is_new else "delete" if self._chance.random() < 0.06 else "patch"
        plot.is_cleared = kind == "delete"
        timing, facts, expiration = self._timing() if kind == "patch" else ({}, {}, None)
        op = self._history.invoke(kind, user=self._user, entity=plot.entity, via="amqp", **facts)
        body: dict[str, Any] | None = None if kind == "delete" else {"metadata": {f"n-{op}": op}}
        if body is not None and is_new:
            body["name"] = f"sown by {op}"
        message_id = f"chaos-{op}"
        self._open[message_id] = op
        headers = {"resource-id": plot.entity, **timing}
        properties = {} if expiration is None else {"expiration": expiration}
        # A repeated message is the same job; but where it may expire, its first copy alone may do so.
        for _ in range(2 if expiration is None and self._chance.random() < 0.1 else 1):
            upstream.publish(
                f"entities.{kind}",
                b"" if body is None else body,
                headers=headers,
                message_id=message_id,
                **properties,
            )
        self._history.add("confirmed", op=op, message=message_id)

    def _timing(self) -> tuple[dict[str, str], dict[str, str], str | None]:
        """At times a message that is to be done later, or not too late: headers, facts, expiration."""
        drawn = self._chance.random()
        now = datetime.now(UTC)
        if drawn < 0.08:
            at = (now + timedelta(seconds=self._chance.uniform(0.5, 6))).isoformat()
            return {"run-at": at}, {"run_at": at}, None
        if drawn < 0.4:
            seconds = round(self._chance.choice([self._chance.uniform(0.2, 2), 3600.0, 3600.0]), 3)
            return (
                {},
                {"lasts_until": (now + timedelta(seconds=seconds)).isoformat()},
                f"{seconds * 1000:.0f}",
            )
        return {}, {}, None

    def _take_replies(self, upstream: Upstream) -> None:
        while True:
            method, properties, body = upstream.channel.basic_get(upstream.reply_queue, auto_ack=True)
            if method is None:
                return
            op = self._open.get(properties.correlation_id or "")
            if op is not None:
                self._answer(op, properties, body)

    def _answer(self, op: int, properties: pika.BasicProperties, body: bytes) -> None:
        kind = str(properties.type)
        job = (properties.headers or {}).get("x-job-id")
        if op not in self._jobs:
            self._jobs[op] = str(job) if job else None
            if kind == "job.rejected":
                self._history.add("fail", op=op, status=json.loads(body).get("status"))
            else:
                self._history.add("ok", op=op, job=str(job))
        elif job and str(job) != self._jobs[op]:
            self._history.add("replayed", op=op, job=str(job), first=self._jobs[op])
        if kind not in ("job.accepted", "job.rejected"):
            self._history.add("replied", op=op, job=str(job), state=kind.removeprefix("job."))


def _quietly(close: Callable[[], None]) -> None:
    try:
        close()
    except _FAULTS:
        return
