"""What a worker process is made of: the container's pieces that tasks need, made after the fork."""

import logging
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from uuid import UUID

from celery import Celery

from models.container import Container
from models.deliveries.outbox import Outbox
from models.settings import Settings
from tasks.announcer import Announcer
from tasks.applier import Applier, worker_name
from tasks.deliverer import Deliverer
from tasks.names import JOB_QUEUES
from tasks.publisher import Publisher
from tasks.webhook import WebhookSender, trust

_log = logging.getLogger("waybill.tasks")
_PRIORITIES = {queue: priority for priority, queue in JOB_QUEUES.items()}

RECEIVERS_AT_ONCE = 16
"""Callback hosts that one process serves side by side."""


@dataclass(frozen=True, slots=True)
class _Pieces:
    container: Container
    applier: Applier
    announcer: Announcer
    deliverers: threading.local


class Runtime:
    """Gives each worker process its own database pool, applier, announcer and deliverer.

    Celery's ``worker_process_init`` fires for prefork and solo but not for threads; asking for the
    process id at use serves all three.

    Args:
        settings: Read once, at the edge.
        app: The Celery application, for announcing.
    """

    def __init__(self, settings: Settings, app: Celery) -> None:
        self._settings = settings
        self._app = app
        self._by_process: dict[int, _Pieces] = {}
        self._making = threading.Lock()

    def apply(self, job_ids: Sequence[UUID], *, are_suspect: bool, queue: str) -> None:
        """Apply jobs announced on ``queue``, then announce the deliveries that follow from them."""
        pieces = self._pieces()
        applied = pieces.applier.apply(job_ids, are_suspect=are_suspect, fill_with=_PRIORITIES.get(queue))
        pieces.announcer.deliveries(applied.delivery_ids)

    def witness(self, job_ids: Sequence[str], pid: int, cause: str) -> None:
        """Tell the ledger what killed the child ``pid``. In Celery's main process; never raises."""
        _log.error("worker lost", extra={"worker": worker_name(pid), "cause": cause, "jobs": len(job_ids)})
        try:
            container = self._pieces().container
            with container.database.transaction() as connection:
                container.ledger.witness_crash(
                    connection, [UUID(one) for one in job_ids], worker_name(pid), cause
                )
        except Exception:
            _log.exception("what killed a worker could not be recorded")

    def deliver(self, delivery_ids: Sequence[UUID]) -> None:
        """Send deliveries."""
        pieces = self._pieces()
        deliverer = getattr(pieces.deliverers, "one", None)
        if deliverer is None:
            deliverer = pieces.deliverers.one = self._deliverer(pieces.container)
        deliverer.deliver(delivery_ids)

    def _pieces(self) -> _Pieces:
        mine = self._by_process.get(os.getpid())
        if mine is None:
            with self._making:
                mine = self._by_process.get(os.getpid()) or self._make()
                self._by_process[os.getpid()] = mine
        return mine

    def _make(self) -> _Pieces:
        container = Container(self._settings, role="worker", pool_size=RECEIVERS_AT_ONCE + 4)
        applier = Applier(
            container.database, container.ledger, container.registry, container.users, container.retry_policy
        )
        return _Pieces(container, applier, Announcer(self._app), threading.local())

    def _deliverer(self, container: Container) -> Deliverer:
        sender = WebhookSender(
            version=version("waybill"), tls=trust(), allow_private=self._settings.callback_allow_private
        )
        executor = ThreadPoolExecutor(RECEIVERS_AT_ONCE, thread_name_prefix="callback")
        return Deliverer(container.database, Outbox(), sender, Publisher(self._app), executor)
