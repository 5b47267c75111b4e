"""The Celery application: its two tasks and its settings. What they do: ``applier``, ``deliverer``."""

import logging
import os
from typing import Any
from uuid import UUID

from celery import Celery, signals
from celery.app.task import Task

from models.errors import Transient
from models.job import Priority
from models.settings import MEMORY_BROKER, Settings
from tasks.bounded_celery import BoundedControl, BoundedEvents
from tasks.names import APPLY, DELIVER, DELIVERIES_QUEUE, JOB_QUEUES
from tasks.runtime import Runtime
from tasks.topology import CELERY_QUEUES
from tasks.witness import PlainRequest, witnessed

_log = logging.getLogger("waybill.tasks")


def make_app(settings: Settings) -> Celery:
    """Make the Celery application for ``settings``. Connects to nothing.

    Its tasks build their collaborators on first use, in the process that runs them: after the fork.
    What the API of a newer version may say beside the ids is left aside: the ledger says all that counts.
    """
    app = Celery("waybill", set_as_current=False, events=BoundedEvents, control=BoundedControl)
    app.conf.update(_configuration(settings))
    runtime = Runtime(settings, app)

    @app.task(shared=False, name=APPLY, bind=True, ignore_result=True, Request=witnessed(runtime.witness))
    def apply(task: Task[Any, Any], /, job_ids: list[str], **_of_a_newer_version: Any) -> None:
        """Apply announced jobs."""
        delivery = task.request.delivery_info or {}
        is_redelivered, queue = bool(delivery.get("redelivered")), str(delivery.get("routing_key"))
        _run(lambda: runtime.apply(_uuids(job_ids), are_suspect=is_redelivered, queue=queue), len(job_ids))

    @app.task(shared=False, name=DELIVER, ignore_result=True, Request=PlainRequest)
    def deliver(delivery_ids: list[str], **_of_a_newer_version: Any) -> None:
        """Send announced deliveries."""
        _run(lambda: runtime.deliver(_uuids(delivery_ids)), len(delivery_ids))

    def close(sender: Any = None, **_: Any) -> None:
        if sender is None or getattr(sender, "app", None) is app:
            runtime.close()

    signals.worker_process_shutdown.connect(close, weak=False)  # each child of prefork
    signals.worker_shutdown.connect(close, weak=False)  # the process of threads
    return app


def _run(work: Any, ids: int) -> None:
    """Run a task's work. While the database is away or busy its message is let go: the sweep repeats it."""
    try:
        work()
    except Transient as error:
        _log.warning("announcement put off", extra={"ids": ids, "reason": str(error)})


def _uuids(texts: list[str]) -> list[UUID]:
    return [UUID(text) for text in texts]


def _configuration(settings: Settings) -> dict[str, Any]:
    return {
        "broker_url": settings.broker_url if settings.has_broker else MEMORY_BROKER,
        "broker_heartbeat": 10,
        "broker_connection_timeout": 3,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": {
            "confirm_publish": True,
            "client_properties": {"connection_name": f"waybill-{os.getpid()}"},
        }
        if settings.has_broker
        else {"polling_interval": 0.02},
        "task_queues": CELERY_QUEUES if settings.has_broker else None,
        "task_default_queue": JOB_QUEUES[Priority.NORMAL],
        "task_create_missing_queues": not settings.has_broker,
        "task_routes": {DELIVER: {"queue": DELIVERIES_QUEUE}},
        "task_ignore_result": True,
        "task_store_errors_even_if_ignored": False,
        "task_acks_late": True,
        "task_acks_on_failure": False,  # what a task cannot cope with goes to the dead letters
        "task_reject_on_worker_lost": True,
        "task_serializer": "json",
        "accept_content": ["json"],
        "worker_consumer": "tasks.plain_consumer:PlainConsumer",
        "worker_prefetch_multiplier": 1,
        "worker_send_task_events": True,
        "worker_hijack_root_logger": False,
        "worker_enable_soft_shutdown_on_idle": False,
        "worker_soft_shutdown_timeout": 0,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "control_queue_exclusive": True,
        "event_queue_exclusive": True,
    }
