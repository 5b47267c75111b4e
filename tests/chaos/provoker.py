"""The provoker: makes the platform come by failpoints that the ordinary workload passes too seldom, or never.

What it sends is mostly about crates, of which no client keeps a history: the ledger and the third party tell
whether it was kept. What it does to entities goes through a client, and into the history.
"""

import json
import subprocess
import uuid
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pika
import psycopg
import urllib3
from pika.exceptions import AMQPError
from sqlalchemy import text

from models.database import Database
from models.errors import DatabaseUnavailable
from models.failpoints import Step
from models.job import Priority
from models.ledger import SUSPECT_AFTER
from tasks.names import JOB_QUEUES
from tests.chaos import ledger
from tests.chaos.arena import ADMIN, PASSWORD, Arena
from tests.chaos.crates import LETHAL, TOO_HEAVY
from tests.chaos.workload import Worker
from tests.kit import ageing
from tests.kit.client import Client

_ANSWER_SECONDS = 10.0
_FAULTS = (
    *(urllib3.exceptions.HTTPError, AMQPError, OSError),
    *(psycopg.Error, DatabaseUnavailable, subprocess.TimeoutExpired),
)
_TRIES = 5
_SUSPECT = "UPDATE jobs SET announcements = %s WHERE state = 'scheduled'"
_UNDER_WAY = f"""SELECT lane FROM jobs WHERE resource = 'crates' AND payload ->> 'weight' = '{LETHAL}'
    AND state IN ('scheduled', 'queued', 'retrying')"""  # noqa: S608 - our own number
_HOLD = f"""SELECT pg_try_advisory_lock(lane) FROM ({_UNDER_WAY}
    AND crashes > 0 AND CAST(crash_log -> -1 ->> 'at' AS timestamptz) > %s) AS lost"""  # noqa: S608
_PAST = 60
"""Jobs that are past their retention, made for each pruning."""


class Provoker:
    """Provokes, one act at a time.

    Args:
        arena: Where.
        worker: A client of the workload, past the clients' link.
        admin_token: For what only an admin may.
        user_id: In whose name jobs were accepted long ago.
    """

    def __init__(self, arena: Arena, worker: Worker, admin_token: str, user_id: str) -> None:
        self._arena = arena
        self._worker = worker
        self._user_id = user_id
        self._admin = Client(arena.direct_urls[0], admin_token, timeout_seconds=_ANSWER_SECONDS)
        self._held: psycopg.Connection[Any] | None = None
        self._held_since = datetime.now(UTC)
        self._has_aged = False
        self._acts: dict[Step, Callable[[], object]] = {
            Step.CANCEL: self._cancel,
            Step.REDRIVE: self._redrive,
            Step.DISCARD: self._discard,
            Step.SESSION: self._come_and_go,
            Step.ADMINISTER: self._administer,
            Step.VERDICT: self._dead_crate,
            Step.CRASH_ATTEMPT: self._suspect,
            Step.APPLY_ALONE: self._suspect,
            Step.WAKE: worker.schedule,
            Step.CLAIM_JOBS: worker.schedule,
            Step.REANNOUNCE_JOBS: worker.schedule,
            Step.CLAIM_DIRECTLY: self._cancel_of_a_client,
            Step.WITNESS: self._lost_suspect,
            Step.PRUNE: self._prune,
            Step.SEND_EFFECT: self._crate,
            Step.GIVE_UP: self._unheard_reply,
            Step.DEAD_LETTER: self._refused_message,
            Step.KEEP_DEAD_MESSAGE: self._unreadable_task,
            Step.ACKNOWLEDGE_DEAD_MESSAGES: self._unreadable_task,
        }

    def provoke(self, failpoint: str) -> None:
        """Do what brings somebody to a failpoint. Never raises for what the platform does."""
        act = self._acts.get(Step(failpoint.partition("-")[2]))
        if act is not None:
            with suppress(*_FAULTS):
                act()

    def let_go(self) -> None:
        """End what was provoked for a while."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def tidy(self) -> None:
        """Finish what a crash may have left for a later day."""
        for _ in range(_TRIES):
            if not self._has_aged or self._arena.run_command("jobs", "prune") == 0:
                return

    # ---- over HTTP ---------------------------------------------------------------------

    def _call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = self._admin.call(method, path, body, named)
        if answer.status == 401:
            login = {"email": ADMIN, "password": PASSWORD}
            self._admin.token = self._admin.call("POST", "/auth/login", login).json.get("accessToken", "")
        return answer.json if answer.status < 300 and answer.body else {}

    def _crate(self, weight: int = 1, **headers: str) -> Any:
        return self._call("POST", "crates", {"label": "provoked", "weight": weight}, **headers)

    def _dead_crate(self) -> str:
        """A job that is dead; empty where it could not be made."""
        made = self._crate(TOO_HEAVY)
        if not made:
            return ""
        changed = {"Prefer": "wait=3", "If_None_Match": f'"{made["sequence"]}"'}
        job = self._call("GET", f"jobs/{made['id']}", **changed)
        return str(job["id"]) if job.get("state") == "dead" else ""

    def _redrive(self) -> None:
        dead = self._dead_crate()
        if dead:
            self._call("POST", f"jobs/{dead}/redrive", {"reason": "provoked", "patch": {"weight": 1}})

    def _discard(self) -> None:
        dead = self._dead_crate()
        if dead:
            self._arena.run_command("dead-letters", "discard", dead, "--reason", "provoked")

    def _cancel(self) -> None:
        run_at = (datetime.now(UTC) + timedelta(seconds=4)).isoformat()
        made = self._crate(Waybill_Run_At=run_at)
        if made:
            self._call("POST", f"jobs/{made['id']}/cancel")

    def _cancel_of_a_client(self) -> None:
        self._worker.schedule()
        self._worker.cancel()

    def _come_and_go(self) -> None:
        client = Client(self._admin.url, timeout_seconds=_ANSWER_SECONDS)
        token = client.call("POST", "/auth/login", {"email": ADMIN, "password": PASSWORD}).json
        for path in ("/auth/refresh", "/auth/logout"):
            if "refreshToken" in token:
                answer = client.call("POST", path, {"refreshToken": token["refreshToken"]})
                token = answer.json if answer.body else {}

    def _administer(self) -> None:
        made = self._call("POST", "callback-endpoints", {"url": "https://example.org/", "events": []})
        if made:
            self._call("DELETE", f"callback-endpoints/{made['id']}")

    # ---- over AMQP ---------------------------------------------------------------------

    def _publish(self, exchange: str, routing_key: str, body: bytes, **properties: Any) -> None:
        parameters = pika.URLParameters(self._arena.rabbitmq.url)
        parameters.socket_timeout = parameters.blocked_connection_timeout = _ANSWER_SECONDS
        with closing(pika.BlockingConnection(parameters)) as connection:
            given = pika.BasicProperties(message_id=str(uuid.uuid4()), delivery_mode=2, **properties)
            connection.channel().basic_publish(exchange, routing_key, body, given)

    def _upstream(self, routing_key: str, body: Any, reply_to: str) -> None:
        given = {"content_type": "application/json", "user_id": "waybill", "reply_to": reply_to}
        self._publish("waybill.intake", routing_key, json.dumps(body).encode(), **given)

    def _refused_message(self) -> None:
        self._upstream("nothing.create", {}, "nobody-listens-here")

    def _unheard_reply(self) -> None:
        self._upstream("crates.create", {"label": "provoked", "weight": 1}, "nobody-listens-here")

    def _unreadable_task(self) -> None:
        self._publish("", JOB_QUEUES[Priority.NORMAL], b"no task", content_type="application/x-nothing")

    # ---- in the database ---------------------------------------------------------------

    def _suspect(self) -> None:
        """Have scheduled jobs be taken for those that kill their workers."""
        self._worker.schedule()
        with ledger.connect(self._arena.postgres.url) as connection:
            connection.execute(_SUSPECT, (SUSPECT_AFTER,))

    def _lost_suspect(self) -> None:
        """Have a suspect lose its worker, and keep its lane from others until that is written down."""
        if self._held is None:
            self._held = ledger.connect(self._arena.postgres.url)
            self._held.autocommit = True
            self._held_since = datetime.now(UTC)
        self._held.execute(_HOLD, (self._held_since,))
        if self._held.execute(_UNDER_WAY).fetchone() is None:
            self._crate(LETHAL, Waybill_Run_At=(datetime.now(UTC) + timedelta(seconds=2)).isoformat())
            self._held.execute(_SUSPECT + " AND resource = 'crates'", (SUSPECT_AFTER,))

    def _prune(self) -> None:
        self._has_aged = True
        database = Database(self._arena.postgres.url)
        with closing(database), database.transaction() as connection:
            given = {"ada": self._user_id, "count": _PAST, "ago": timedelta(days=40)}
            connection.execute(text(ageing.MANY), given)
        self._arena.run_command("jobs", "prune")
