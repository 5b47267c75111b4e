"""The collector: takes what Celery or the broker gave up on out of ``waybill.jobs.dead``, into the database.

::

    take ─▶ read (what can be read) ─▶ match with the ledger, keep, commit ─▶ acknowledge

A dead announcement loses no job: the sweep repeats it. One that the broker gave up on after many
deliveries may hold a job that kills its workers, so its jobs are made suspects, to be tried alone.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any
from uuid import UUID

import orjson

from consumers.envelope import Arrival
from consumers.link import Link
from models import failpoints, metrics
from models.database import Database
from models.dead_letters.messages import DeadMessage, DeadMessages
from models.errors import Transient
from models.failpoints import Step
from models.ids import parse_id
from models.ledger import SUSPECT_AFTER, Ledger
from tasks.names import APPLY

BATCH = 50
_IDLE_SECONDS = 0.5
_REST_SECONDS = 1.0
_LONGEST_TEXT = 1000
_DEEPEST = 5
_WORN_OUT = "delivery_limit"

_log = logging.getLogger("waybill.dead_messages")


class DeadMessageCollector:
    """Collects until told to stop; outlives broker and database.

    Args:
        database: Where they are kept.
        messages: Keeps them.
        ledger: Makes suspects of the jobs that they announced.
        open_link: Opens a link to the queue; it is consumed from at once.
        stopping: Set when the process is to stop.
    """

    def __init__(
        self,
        database: Database,
        messages: DeadMessages,
        ledger: Ledger,
        open_link: Callable[[], Link],
        stopping: threading.Event,
    ) -> None:
        self._database = database
        self._messages = messages
        self._ledger = ledger
        self._open_link = open_link
        self._stopping = stopping

    def run(self) -> None:
        """Collect; returns once stopped. What is not acknowledged goes back to the queue."""
        is_troubled = False
        while not self._stopping.is_set():
            try:
                link = self._open_link()
            except Exception as error:
                if not is_troubled:
                    _log.warning("dead messages wait for the broker", extra={"reason": str(error)})
                is_troubled = True
                self._stopping.wait(_REST_SECONDS)
                continue
            is_troubled = False
            try:
                self._collect(link)
            except Exception as error:
                _log.warning("collecting begins anew", extra={"reason": f"{type(error).__name__}: {error}"})
                self._stopping.wait(_REST_SECONDS)
            finally:
                link.close()

    def _collect(self, link: Link) -> None:
        while not self._stopping.is_set():
            arrivals = link.take(BATCH, _IDLE_SECONDS)
            for arrival in arrivals:
                if not self._keep_when_possible(link, read(arrival)):
                    return
            if arrivals:
                failpoints.before(Step.ACKNOWLEDGE_DEAD_MESSAGES)
                link.acknowledge(arrivals)
                failpoints.after(Step.ACKNOWLEDGE_DEAD_MESSAGES)

    def _keep_when_possible(self, link: Link, message: DeadMessage) -> bool:
        """Keep ``message``, holding it while the database is away; False where we are to stop meanwhile."""
        while not self._stopping.is_set():
            try:
                self._keep(message)
            except Transient as error:
                _log.warning("dead messages wait for the database", extra={"reason": str(error)})
                self._stopping.wait(_REST_SECONDS)
                link.keep_alive()
            else:
                return True
        return False

    def _keep(self, message: DeadMessage) -> None:
        try:
            self._store(message)
        except Transient:
            raise
        except Exception:
            _log.exception("a dead message is kept without its headers")
            self._store(replace(message, headers={}, task=None, queue=None, reason=None, content_type=None))

    def _store(self, message: DeadMessage) -> None:
        with self._database.transaction(Step.KEEP_DEAD_MESSAGE) as connection:
            is_new = self._messages.keep(connection, message)
            if is_new and message.are_jobs and message.reason == _WORN_OUT:
                self._ledger.suspect(connection, message.ids, SUSPECT_AFTER)
        if is_new:
            reason = message.reason if message.reason in _REASONS else "other"
            metrics.DEAD_MESSAGES.labels(reason).inc()
            facts = {"task": message.task, "queue": message.queue, "reason": message.reason}
            _log.warning("dead message kept", extra={**facts, "ids": len(message.ids), "bytes": message.size})


_REASONS = frozenset({"rejected", "expired", "maxlen", _WORN_OUT})


def read(arrival: Arrival) -> DeadMessage:
    """What can be read of a message, whatever it is; never raises."""
    death = _death_of(arrival.headers)
    task = _text(arrival.headers.get("task"))
    digest = blake2b(arrival.body, digest_size=32)
    digest.update(repr((arrival.headers.get("id"), arrival.headers.get("x-death"))).encode())
    return DeadMessage(
        digest=digest.digest(),
        queue=_text(death.get("queue")),
        reason=_text(death.get("reason")),
        task=task,
        are_jobs=task == APPLY,
        ids=_ids(arrival.body),
        headers={
            str(_plain(name)): _plain(value)
            for name, value in arrival.headers.items()
            if str(name).lower() != "authorization"
        },
        content_type=_text(arrival.properties.get("content_type")),
        size=len(arrival.body),
        body=arrival.body,
    )


def _death_of(headers: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The latest entry of the broker's own record, ``x-death``."""
    deaths = headers.get("x-death")
    latest = deaths[0] if isinstance(deaths, list) and deaths else None
    return latest if isinstance(latest, Mapping) else {}


def _ids(body: bytes) -> tuple[UUID, ...]:
    """The ids in a body of Celery's, ``[[[id, …]], {…}, {…}]``; none where it is anything else."""
    try:
        named: Any = orjson.loads(body)[0][0]
    except (ValueError, LookupError, TypeError):
        return ()
    if not isinstance(named, list):
        return ()
    found = (parse_id(one) for one in named if isinstance(one, str))
    return tuple(one for one in found if one is not None)


def _text(value: Any) -> str | None:
    return None if value is None else str(_plain(value))


def _plain(value: Any, depth: int = 0) -> Any:
    """``value`` as PostgreSQL's JSON takes it, and not for ever long."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**63 else str(value)
    if isinstance(value, Mapping) and depth < _DEEPEST:
        return {str(_plain(key)): _plain(item, depth + 1) for key, item in list(value.items())[:100]}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes) and depth < _DEEPEST:
        return [_plain(item, depth + 1) for item in value[:100]]
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    written = str(value)[:_LONGEST_TEXT].replace("\x00", "\ufffd")
    return written.encode("utf-8", "replace").decode()
