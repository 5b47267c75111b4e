"""The provoker: makes the platform come by failpoints that the ordinary workload passes too seldom, or never.

What it sends is mostly about crates, of which no client keeps a history: the ledger and the third party tell
whether it was kept. What it does to entities goes through a client, and into the history.
"""

import json
import random
import subprocess
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pika
import psutil
import psycopg
import pyotp
import urllib3
from pika.exceptions import AMQPError
from sqlalchemy import text

from models.database import Database
from models.deliveries.outbox import CLAIM
from models.errors import DatabaseUnavailable
from models.failpoints import Step
from models.job import Priority
from models.ledger import SUSPECT_AFTER
from tasks.dispatch import AT_ONCE
from tasks.names import JOB_QUEUES
from tests.chaos import ledger
from tests.chaos.arena import PASSWORD, Arena
from tests.chaos.broker import nodes_of
from tests.chaos.crates import HASTY, INSURE, LETHAL, PUZZLING, SHIP, TOO_HEAVY
from tests.chaos.user import User
from tests.chaos.workload import Worker
from tests.kit import ageing
from tests.kit.client import Client
from tests.kit.faulty_link import FaultyLink, Mode, Weather
from tests.kit.launched import ended

_ANSWER_SECONDS = 10.0
_FAULTS = (
    *(urllib3.exceptions.HTTPError, AMQPError, OSError, psutil.Error),
    *(psycopg.Error, DatabaseUnavailable, subprocess.TimeoutExpired),
)
_TRIES = 5
_SUSPECT = "UPDATE jobs SET announcements = %s WHERE state = 'scheduled'"
_UNDER_WAY = f"""FROM jobs WHERE resource = 'crates' AND payload ->> 'weight' = '{LETHAL}'
    AND state IN ('scheduled', 'queued', 'retrying')"""
_TRIED = f"""SELECT lane, CAST(split_part(crash_log -> -1 ->> 'worker', ':', 2) AS integer) {_UNDER_WAY}
    AND crashes > 0 AND CAST(crash_log -> -1 ->> 'at' AS timestamptz) > %s"""
_HOLD = "SELECT pg_try_advisory_lock(%s)"
_HURRY = "UPDATE deliveries SET announce_at = now() WHERE target = %s AND announce_at > now()"
_OLD_FAILURE = """INSERT INTO login_attempts (digest, failures, last_at)
    VALUES (uuid_send(gen_random_uuid()), 1, now() - interval '40 days')"""
_PAST = 60
"""Jobs that are past their retention, made for each pruning."""
_CROWD = 700
"""Calls for one receiver that are more than may wait for it, and than those that are sent meanwhile."""
_CROWD_EVERY_SECONDS, _LET_IN_EVERY_SECONDS = 20.0, 1.0
_STARTING_SECONDS = 8.0
"""So long after its start a worker is about to begin, or has begun."""
_CLAIMING_SECONDS = 10.0
"""So long it may take a worker to claim what was made for it."""
_HELD = """SELECT count(*) FROM deliveries WHERE job_id = ANY(%s) AND target = %s
    AND announce_at BETWEEN updated_at + %s AND updated_at + %s + interval '1 second'"""


class Provoker:
    """Provokes, one act at a time.

    Args:
        arena: Where.
        worker: A client of the workload, past the clients' link.
        admin: For what only an admin may.
        user: Whose callbacks are sent again, and in whose name jobs were accepted long ago.
    """

    def __init__(self, arena: Arena, worker: Worker, admin: User, user: User) -> None:
        self._arena = arena
        self._worker = worker
        self._user = user
        self._admin = _Caller(arena.direct_urls[0], admin.email, admin.password, admin.token)
        self._owner = _Caller(arena.direct_urls[0], user.email, user.password, user.token)
        self._crowded_at = self._let_in_at = float("-inf")
        self._pace = random.Random(user.name)
        self._cut: Sequence[FaultyLink] = ()
        self._told_to_stop: set[int] = set()
        self._held: psycopg.Connection[Any] | None = None
        self._held_since = datetime.now(UTC)
        self._has_aged = False
        self._acts: dict[Step, Callable[[], object]] = {
            Step.CANCEL: self._cancel,
            Step.REDRIVE: self._redrive,
            Step.REFUSE: self._refused_redrive,
            Step.DISCARD: self._discard,
            Step.LOG_IN: self._come_and_go,
            Step.COUNT_FAILED_LOG_IN: self._fail_to_log_in,
            Step.REFRESH: self._come_and_go,
            Step.LOG_OUT: self._come_and_go,
            Step.ENROLL_MFA: self._take_care,
            Step.CONFIRM_MFA: self._take_care,
            Step.REGISTER_ENDPOINT: self._keep_endpoint,
            Step.ROTATE_ENDPOINT: self._keep_endpoint,
            Step.REMOVE_ENDPOINT: self._keep_endpoint,
            Step.RESEND: self._resend,
            Step.RECOVER: self._recover,
            Step.RESEAL: self._rotate_keys,
            Step.VERDICT: self._dead_crate,
            Step.CRASH_ATTEMPT: self._suspect,
            Step.APPLY_ALONE: self._suspect,
            Step.WAKE: worker.schedule,
            Step.CLAIM_JOBS: worker.schedule,
            Step.REANNOUNCE_JOBS: worker.schedule,
            Step.CLAIM_DIRECTLY: self._cancel_of_a_client,
            Step.WITNESS: self._lost_suspect,
            Step.PRUNE_JOBS: self._prune,
            Step.PRUNE_REST: self._prune,
            Step.SEND_EFFECT: self._crate,
            Step.PUT_OFF: self._crate,
            Step.PUT_OFF_PUBLISH: self._lose_broker,
            Step.PUT_OFF_SURPLUS: self._crowd,
            Step.PUT_OFF_OURS: self._puzzling_crate,
            Step.GIVE_BACK: self._stop_sending,
            Step.GIVE_UP: self._hasty_crates,
            Step.GIVE_UP_REPLY: self._unheard_reply,
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
        for link in self._cut:
            link.heal()
        self._cut = ()
        if self._held is not None:
            self._held.close()
            self._held = None

    def tidy(self) -> None:
        """Finish what a crash may have left for a later day."""
        for _ in range(_TRIES):
            with suppress(*_FAULTS):
                if not self._has_aged or self._arena.run_command("jobs", "prune") == 0:
                    return

    # ---- over HTTP ---------------------------------------------------------------------

    def _crate(self, weight: int = 1, label: str = "provoked", **headers: str) -> Any:
        return self._admin.call("POST", "crates", {"label": label, "weight": weight}, **headers)

    def _crates(self, count: int, label: str = "provoked") -> list[str]:
        """The jobs that make so many; none where they were refused."""
        one = {"operation": "create", "resource": "crates", "data": {"label": label, "weight": 1}}
        made = self._admin.call("POST", "bulk", {"operations": [one] * count})
        return [job["id"] for job in made.get("jobs", []) if "id" in job]

    def _dead_crate(self) -> str:
        """A job that is dead; empty where it could not be made."""
        made = self._crate(TOO_HEAVY)
        if not made:
            return ""
        changed = {"Prefer": "wait=3", "If_None_Match": f'"{made["sequence"]}"'}
        job = self._admin.call("GET", f"jobs/{made['id']}", **changed)
        return str(job["id"]) if job.get("state") == "dead" else ""

    def _redrive(self) -> None:
        dead = self._dead_crate()
        if dead:
            self._admin.call("POST", f"jobs/{dead}/redrive", {"reason": "provoked", "patch": {"weight": 1}})

    def _refused_redrive(self) -> None:
        self._admin.call("POST", f"jobs/{uuid.uuid4()}/redrive", {"no such member": 1})

    def _discard(self) -> None:
        dead = self._dead_crate()
        if dead:
            self._arena.run_command("dead-letters", "discard", dead, "--reason", "provoked")

    def _cancel(self) -> None:
        run_at = (datetime.now(UTC) + timedelta(seconds=4)).isoformat()
        made = self._crate(Waybill_Run_At=run_at)
        if made:
            self._admin.call("POST", f"jobs/{made['id']}/cancel")

    def _cancel_of_a_client(self) -> None:
        self._worker.schedule()
        self._worker.cancel()

    def _come_and_go(self) -> None:
        token = self._admin.log_in()
        for path in ("/auth/refresh", "/auth/logout"):
            if token:
                token = self._admin.call("POST", path, {"refreshToken": token["refreshToken"]})

    def _fail_to_log_in(self) -> None:
        _Caller(self._admin.url, f"{uuid.uuid4().hex}@example.org", "a guess").log_in()

    def _take_care(self) -> None:
        """Somebody new turns on a second factor."""
        email = f"{uuid.uuid4().hex}@example.org"
        wanted = {"email": email, "password": PASSWORD, "role": "user"}
        self._admin.call("POST", "users", wanted, Prefer="wait=5")
        careful = _Caller(self._admin.url, email, PASSWORD)
        careful.log_in()
        enrolled = careful.call("POST", "/auth/mfa/enroll")
        if enrolled:
            careful.call("POST", "/auth/mfa/confirm", {"otp": pyotp.TOTP(enrolled["secret"]).now()})

    def _keep_endpoint(self) -> None:
        url = "https://example.org/"
        made = self._admin.call("POST", "callback-endpoints", {"url": url, "events": []})
        if made:
            self._admin.call("POST", f"callback-endpoints/{made['id']}/rotate")
            self._admin.call("DELETE", f"callback-endpoints/{made['id']}")

    def _resend(self) -> None:
        sent = self._owner.call("GET", f"callback-endpoints/{self._user.endpoint}/deliveries?state=delivered")
        for one in sent.get("items", [])[:1]:
            self._owner.call("POST", f"deliveries/{one['id']}/resend")

    def _recover(self) -> None:
        since = (datetime.now(UTC) - timedelta(seconds=2)).isoformat()
        self._owner.call("POST", f"callback-endpoints/{self._user.endpoint}/recover", {"since": since})

    def _rotate_keys(self) -> None:
        self._arena.run_command("doctor", "--rotate-keys")

    # ---- over HTTP, for who sends ------------------------------------------------------

    def _puzzling_crate(self) -> None:
        self._crate(label=PUZZLING)

    def _crowd(self) -> None:
        if time.monotonic() - self._crowded_at > _CROWD_EVERY_SECONDS:
            self._crowded_at = time.monotonic()
            ledger.hasten(self._arena.postgres.url)
            self._crates(_CROWD)
        elif time.monotonic() - self._let_in_at > _LET_IN_EVERY_SECONDS:
            self._let_in_at = time.monotonic()
            with ledger.connect(self._arena.postgres.url) as connection:
                connection.execute("DELETE FROM breakers")  # nothing waits for one whose breaker is open

    def _lose_broker(self) -> None:
        """Have workers lose the broker while they publish; they have a moment to be back before."""
        self._cut = [one for name, one in self._arena.links.items() if name.startswith("worker-rabbitmq")]
        for link in self._cut:
            link.heal()
        time.sleep(1)
        self._crates(50)
        time.sleep(self._pace.uniform(0.1, 0.8))
        for link in self._cut:
            link.set(Weather(Mode.RESET))
        time.sleep(0.5)

    def _stop_sending(self) -> None:
        """Have the worker of deliveries end while some wait for a receiver that does not answer."""
        for sender in self._arena.mains("worker"):
            has_begun = time.time() - sender.create_time() > _STARTING_SECONDS
            is_new = sender.pid not in self._told_to_stop
            if "worker-deliveries" in sender.cmdline() and has_begun and is_new:
                ledger.hasten(self._arena.postgres.url)
                if self._are_claimed(self._crates(20)):
                    self._told_to_stop.add(sender.pid)
                    sender.terminate()

    def _are_claimed(self, jobs: Sequence[str]) -> bool:
        """Whether a worker soon has in hand what these ship, and more than it sends at once."""
        until = time.monotonic() + _CLAIMING_SECONDS
        ids = [uuid.UUID(job) for job in jobs]
        with ledger.connect(self._arena.postgres.url) as connection:
            connection.autocommit = True
            while time.monotonic() < until:
                held = connection.execute(_HELD, (ids, SHIP, CLAIM, CLAIM)).fetchone()
                if held is not None and int(str(held[0])) > AT_ONCE:
                    return True
                time.sleep(0.1)
        return False

    def _hasty_crates(self) -> None:
        self._crates(5, HASTY)
        with ledger.connect(self._arena.postgres.url) as connection:
            connection.execute(_HURRY, (INSURE,))

    # ---- over AMQP ---------------------------------------------------------------------

    def _publish(self, exchange: str, routing_key: str, body: bytes, **properties: Any) -> None:
        with closing(pika.BlockingConnection(nodes_of(self._arena.rabbitmq.url))) as connection:
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
        for lane, pid in self._held.execute(_TRIED, (self._held_since,)).fetchall():
            if ended(pid):  # one that still tries it must not find its own lane taken
                self._held.execute(_HOLD, (lane,))
        if self._held.execute(f"SELECT id {_UNDER_WAY}").fetchone() is None:
            self._crate(LETHAL, Waybill_Run_At=(datetime.now(UTC) + timedelta(seconds=2)).isoformat())
            self._held.execute(_SUSPECT + " AND resource = 'crates'", (SUSPECT_AFTER,))

    def _prune(self) -> None:
        self._has_aged = True
        database = Database(self._arena.postgres.url)
        with closing(database), database.transaction() as connection:
            given = {"ada": self._user.id, "count": _PAST, "ago": timedelta(days=40)}
            connection.execute(text(ageing.MANY), given)
            connection.execute(text(_OLD_FAILURE))
        self._arena.run_command("jobs", "prune")


class _Caller:
    """Somebody who calls, and logs in anew where that is needed.

    Args:
        url: The API's.
        email: Theirs.
        password: Theirs.
        token: If there is one already.
    """

    def __init__(self, url: str, email: str, password: str, token: str = "") -> None:
        self.url = url
        self._login = {"email": email, "password": password}
        self._client = Client(url, token, timeout_seconds=_ANSWER_SECONDS)

    def log_in(self) -> Any:
        """A session; empty where it was refused."""
        session = self.call("POST", "/auth/login", self._login)
        self._client.token = session.get("accessToken", "")
        return session

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """What a call gives; empty where it was refused."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = self._client.call(method, path, body, named)
        if answer.status == 401 and path != "/auth/login":
            self.log_in()
        return answer.json if answer.status < 300 and answer.body else {}
