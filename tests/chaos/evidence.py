"""What a run left to be judged, and the history read as operations. The judgement: ``checker.py``."""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from standardwebhooks import Webhook

from tests.chaos.arena import Footprint
from tests.chaos.crates import DEPOT
from tests.chaos.history import Line
from tests.chaos.ledger import Table, Transition
from tests.chaos.witness import Witnessed
from tests.kit.receiver import ReceivedRequest

SUBSCRIBED = frozenset({"failed", "cancelled", "expired", "dead"})
"""Of these states each user's endpoint is told, whatever the job says of a callback."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A callback as it came in.

    Attributes:
        user: Whose endpoint it came to.
        digest: Of its body.
    """

    user: str
    job: str
    webhook_id: str
    state: str
    digest: str
    is_signed: bool


@dataclass(frozen=True, slots=True)
class Call:
    """A call to the third party as it came in.

    Attributes:
        key: By which it tells a repetition: job and effect.
        digest: Of its body.
    """

    key: str
    digest: str


@dataclass(slots=True)
class Op:
    """An operation, from its lines.

    Attributes:
        outcome: ``ok``, ``fail`` or ``unknown`` (also where no line tells).
        answered: When its ``ok`` came.
        state: Its job's last state that anybody saw.
        version: That it made, where anybody saw it.
        finished: When, as the job says.
    """

    number: int
    kind: str
    user: str
    entity: str
    invoked: float
    facts: Mapping[str, Any]
    outcome: str = "unknown"
    answered: float | None = None
    job: str | None = None
    state: str | None = None
    version: int | None = None
    finished: str | None = None

    @property
    def nonce(self) -> str:
        """What it leaves in its entity."""
        return f"n-{self.number}"

    @property
    def is_later(self) -> bool:
        """Whether it was scheduled: then it joins its lane when it is due."""
        return "run_at" in self.facts


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything.

    Attributes:
        transitions: All that the ledger keeps.
        users: Ids by name.
        leftovers: What was not at rest in the end, a line each.
        ledger: What the ledger's own rules found.
        settled: Ids of upstream's messages that became jobs, or dead letters.
        shipments: Jobs that the third party is to be told of.
        calls: What it was told.
        tables: What each takes, by name.
        before: The footprint before the first fault.
        after: The footprint at rest.
    """

    lines: Sequence[Line]
    testimonies: Sequence[Witnessed] = ()
    arrivals: Sequence[Arrival] = ()
    users: Mapping[str, str] = field(default_factory=dict)
    leftovers: Sequence[str] = ()
    ledger: Sequence[str] = ()
    settled: Collection[str] = ()
    shipments: Sequence[str] = ()
    calls: Sequence[Call] = ()
    transitions: Sequence[Transition] = ()
    tables: Mapping[str, Table] = field(default_factory=dict)
    before: Footprint | None = None
    after: Footprint | None = None

    def seen(self) -> list[Line]:
        """Jobs as they were shown, in the order of the answers."""
        return [line for line in self.lines if line["event"] == "seen"]

    def operations(self) -> dict[int, Op]:
        """The operations, with what became of their jobs."""
        ops: dict[int, Op] = {}
        by_job: dict[str, Op] = {}
        for line in self.lines:
            match line["event"]:
                case "invoke":
                    op = ops[line["op"]] = Op(
                        line["op"], line["kind"], line["user"], line["entity"], line["at"], line
                    )
                case "ok":
                    op = ops[line["op"]]
                    op.outcome, op.answered, op.job = "ok", line["at"], line.get("job")
                    op.state, op.version = line.get("state"), line.get("version")
                    if op.job is not None:
                        by_job[op.job] = op
                case "fail" | "unknown":
                    ops[line["op"]].outcome = line["event"]
        by_request = {f"chaos-op-{op.number}": op for op in ops.values()}
        for line in self.seen():
            told = by_job.get(line["job"]) or by_request.get(line["request"])
            if told is not None and line["done"]:
                told.job = told.job or line["job"]
                told.state = line["state"]
                told.version = line.get("version", told.version)
                told.finished = line.get("finished", told.finished)
        return ops


def arrivals(requests: Iterable[ReceivedRequest], secrets: Mapping[str, str]) -> list[Arrival]:
    """Callbacks as the receiver has them, each verified.

    Args:
        requests: Their paths are ``/<user>``, but for the third party's.
        secrets: What signs, by user.
    """
    found = []
    for request in requests:
        if _is_call(request):
            continue
        user = request.path.strip("/")
        is_signed = user in secrets and _is_signed(request, secrets[user])
        document = json.loads(request.body)
        found.append(
            Arrival(
                user,
                document["data"]["id"],
                request.headers.get("webhook-id", ""),
                document["type"].removeprefix("job."),
                hashlib.sha256(request.body).hexdigest(),
                is_signed,
            )
        )
    return found


def calls(requests: Iterable[ReceivedRequest]) -> list[Call]:
    """What the third party was told, of all that came in."""
    return [
        Call(one.headers.get("idempotency-key", ""), hashlib.sha256(one.body).hexdigest())
        for one in requests
        if _is_call(one)
    ]


def _is_call(request: ReceivedRequest) -> bool:
    return request.path.startswith(f"/{DEPOT}/")


def _is_signed(request: ReceivedRequest, secret: str) -> bool:
    """Whether the secret's signature stands over what came; ``Webhook.verify`` would want it fresh, too."""
    headers = request.headers
    try:
        sent_at = datetime.fromtimestamp(int(headers["webhook-timestamp"]), UTC)
    except (KeyError, ValueError):
        return False
    expected = Webhook(secret).sign(headers.get("webhook-id", ""), sent_at, request.body.decode())
    return expected in headers.get("webhook-signature", "").split()
