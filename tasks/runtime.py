"""What a worker process is made of: the container's pieces that tasks need, made after the fork."""

import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from uuid import UUID

from celery import Celery

from models.container import Container
from models.deliveries.outbox import DeliveryKind, Outbox
from models.failpoints import Step
from models.settings import Settings
from tasks.announcer import Announcer
from tasks.applier import Applier
from tasks.courier import CallbackCourier
from tasks.crash_attempts import worker_name
from tasks.deliverer import Deliverer
from tasks.effect_courier import EffectCourier
from tasks.names import JOB_QUEUES
from tasks.publisher import Publisher
from tasks.sending import Sending
from tasks.service_client import ServiceClient
from tasks.webhook import WebhookSender, trust

_log = logging.getLogger("waybill.tasks")
_PRIORITIES = {queue: priority for priority, queue in JOB_QUEUES.items()}

POOL_SIZE = 12
"""Database connections of one process: threads that send hold one only before and after."""

CLOSE_SECONDS = 8
"""How long sends under way may take once the process is to stop; others are given back at once."""


@dataclass(frozen=True, slots=True)
class _Pieces:
    container: Container
    applier: Applier
    announcer: Announcer
    sending: Sending
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
            container.cache.forget_all()  # it may have died owing the cache a change
            with container.database.transaction(Step.WITNESS) as connection:
                container.ledger.witness_crash(connection, worker_name(pid), cause)
        except Exception:
            _log.exception("what killed a worker could not be recorded")

    def deliver(self, delivery_ids: Sequence[UUID]) -> None:
        """Send deliveries."""
        pieces = self._pieces()
        deliverer = getattr(pieces.deliverers, "one", None)
        if deliverer is None:
            deliverer = pieces.deliverers.one = Deliverer(
                pieces.container.database, Outbox(), pieces.sending, Publisher(self._app)
            )
        deliverer.deliver(delivery_ids)

    def close(self) -> None:
        """Stop sending: what this process has not begun is given back. Nothing where it never began."""
        mine = self._by_process.pop(os.getpid(), None)
        if mine is not None:
            mine.sending.close(CLOSE_SECONDS)

    def _pieces(self) -> _Pieces:
        mine = self._by_process.get(os.getpid())
        if mine is None:
            with self._making:
                mine = self._by_process.get(os.getpid()) or self._make()
                self._by_process[os.getpid()] = mine
        return mine

    def _make(self) -> _Pieces:
        container = Container(self._settings, role="worker", pool_size=POOL_SIZE)
        applier = Applier(
            container.database,
            container.ledger,
            container.registry,
            container.users,
            container.views,
            container.retry_policy,
        )
        sending = make_sending(container, self._settings)
        return _Pieces(container, applier, Announcer(self._app), sending, threading.local())


def make_sending(container: Container, settings: Settings) -> Sending:
    """What sends over HTTP in this process: callbacks, and effects on the services of the settings."""
    outbox = Outbox()
    sender = WebhookSender(
        version=version("waybill"), tls=trust(), allow_private=settings.callback_allow_private
    )
    user_agent = f"Waybill/{version('waybill')}"
    clients = {
        name: ServiceClient(name, service, user_agent=user_agent)
        for name, service in settings.services.items()
    }
    return Sending(
        container.database,
        outbox,
        {
            DeliveryKind.CALLBACK: CallbackCourier(
                sender, container.endpoint_secrets, container.endpoints, outbox
            ),
            DeliveryKind.EFFECT: EffectCourier(container.registry.effects(), clients, outbox),
        },
    )
