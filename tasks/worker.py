"""The worker process: a Celery worker with a sweeper and a pruner beside it. Its tasks are in ``app``."""

import logging
import signal
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import Any

from billiard import pool as billiard_pool
from celery import Celery, signals
from celery.app.trace import setup_worker_optimizations
from celery.exceptions import CPendingDeprecationWarning, SecurityWarning
from celery.platforms import EX_OK
from celery.utils.nodenames import host_format
from celery.worker import state

from models import log
from models.container import Container
from models.deliveries.outbox import Outbox
from models.settings import Settings
from models.stop_deadline import StopDeadline, ignore_signals
from tasks.app import make_app
from tasks.direct_delivery import DirectDelivery
from tasks.names import ALL_QUEUES
from tasks.pruner import Pruner
from tasks.runtime import make_sending
from tasks.sweeper import Sweeper

SWEEPER_POOL_SIZE = 6
"""Database connections of one sweeper: one to sweep; while the broker is away the others, to send."""

FAREWELL_SECONDS = 2.0
"""How long a pool process that is to end waits for Celery's main process to take its last result."""


def run(
    settings: Settings,
    *,
    name: str = "worker",
    queues: Sequence[str] = ALL_QUEUES,
    concurrency: int | None = None,
    pool: str = "prefork",
) -> int:
    """Run a Celery worker until SIGTERM or SIGINT, warm: tasks under way are finished.

    Args:
        settings: Read once, at the edge.
        name: First half of its node name; the second is the host's.
        queues: What it consumes. Reserve capacity per priority by running one worker for each.
        concurrency: Processes or threads; the setting's where None.
        pool: ``prefork`` or ``threads``.

    Raises:
        ConfigurationError: This version cannot work with the database's schema, or a setting is wrong.
    """
    log.configure(settings.log_level)
    quieten()
    shorten_farewell()
    check_schema(settings)
    app = make_app(settings)
    sweeper, pruner = make_sweeper(settings, app), make_pruner(settings)
    deadline = StopDeadline()

    def start_beside(**_: Any) -> None:
        sweeper.start()
        pruner.start()

    signals.worker_ready.connect(start_beside, weak=False)
    signals.worker_process_init.connect(_leave_hang_up_to_the_parent, weak=False)
    signals.setup_logging.connect(_keep_our_logging, weak=False)
    is_first = partial(deadline.begin, pruner.begin_to_stop, sweeper.begin_to_stop)
    worker = _warm_worker(app, is_first)(
        hostname=host_format(f"{name}@%h"),
        queues=list(queues),
        concurrency=concurrency or settings.worker_concurrency,
        pool=pool,
        task_events=True,
        without_gossip=True,
        without_mingle=True,
        loglevel=settings.log_level,
        optimization="fair",
        quiet=True,
    )
    worker.start()
    deadline.begin()
    pruner.stop()
    sweeper.stop()
    ignore_signals()
    return int(worker.exitcode or 0)


def _leave_hang_up_to_the_parent(**_: Any) -> None:
    """A terminal that goes away tells all of them; a pool process is to finish its task, as at SIGTERM."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def check_schema(settings: Settings) -> None:
    """See that the schema is one to work with; nothing of it is open any more when the pool forks.

    Raises:
        ConfigurationError: It is not.
    """
    container = Container(settings, role="worker", pool_size=1)
    try:
        container.check_schema()
    finally:
        container.close()


def _warm_worker(app: Celery, is_first: Callable[[], bool]) -> type[Any]:
    """Celery's worker, for which SIGINT and SIGHUP are what SIGTERM is, and each further signal nothing.

    Its own takes the second SIGINT, even one after a SIGTERM, for an order to drop the tasks under way, and
    SIGHUP for one to begin anew; and one that comes while the handler of another holds a lock makes it wait
    for itself.

    Args:
        app: The Celery application.
        is_first: Asked whenever it is to stop, in the signal's handler too.
    """

    class WarmWorker(app.Worker):  # type: ignore[misc, name-defined]
        """See above."""

        def install_platform_tweaks(self, worker: Any) -> None:
            """Install the handlers of signals; where ``nohup`` has it ignore SIGHUP, it goes on to do so."""
            at_hang_up = signal.getsignal(signal.SIGHUP)
            super().install_platform_tweaks(worker)
            shut_down: Any = signal.getsignal(signal.SIGTERM)

            def stop(number: int, frame: FrameType | None) -> None:
                if is_first():
                    shut_down(number, frame)

            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, stop)
            if at_hang_up is signal.SIG_IGN:
                signal.signal(signal.SIGHUP, signal.SIG_IGN)

        def stop(self, *arguments: Any, **options: Any) -> None:
            """Celery's own, in time, also where no signal asked for it."""
            is_first()
            super().stop(*arguments, **options)

        def terminate(self, *arguments: Any, **options: Any) -> None:
            """The same."""
            is_first()
            super().terminate(*arguments, **options)

    return WarmWorker


def make_sweeper(settings: Settings, app: Celery) -> Sweeper:
    """A sweeper with a database pool of its own."""
    container = Container(settings, role="sweeper", pool_size=SWEEPER_POOL_SIZE)
    container.cache.forget_all()  # who was here before may have died owing it a change
    container.check_services()  # a bad WAYBILL_RESOURCES or WAYBILL_SERVICES is told at start
    direct = DirectDelivery(container.database, Outbox(), lambda: make_sending(container, settings))
    return Sweeper(container.database, container.ledger, Outbox(), app, direct)


def make_pruner(settings: Settings) -> Pruner:
    """A pruner with a database connection of its own."""
    return Pruner(Container(settings, role="pruner", pool_size=1).retention)


def _keep_our_logging(**_: Any) -> None:
    """Celery configures no logging of its own where this signal has a receiver."""


def quieten() -> None:
    """Leave out Celery's two lines a message, and two of its warnings.

    What became of a message's jobs is logged by the applier. It warns of root because of pickle, and we
    take nothing but JSON; and of tasks that go on when the connection is lost, which ours may.
    """
    for category in (SecurityWarning, CPendingDeprecationWarning):
        warnings.filterwarnings("ignore", category=category)
    for name in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).setLevel(logging.WARNING)


def shorten_farewell() -> None:
    """Let a pool process end after :data:`FAREWELL_SECONDS`, whether its last result was taken or not.

    billiard's 30 s are for those who need the result; seen after SIGTERM, they leave a queue without its
    worker for as long. Here the result only acknowledges a message, and its jobs are final in the ledger: one
    that is delivered again finds them done.
    """
    pause = billiard_pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_INTERVAL
    billiard_pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT = round(FAREWELL_SECONDS / pause)


class ThreadedWorker:
    """A Celery worker on threads inside this process, for ``memory://``, whose queues are local to it.

    Args:
        app: The Celery application; the publisher of its tasks must be in this process too.
        concurrency: Threads.
        hostname: Its node name.
        on_lost: Called in its thread when it ends unasked, as by Flower's menu.
    """

    def __init__(
        self, app: Celery, *, concurrency: int, hostname: str, on_lost: Callable[[], None] = lambda: None
    ) -> None:
        self._on_lost = on_lost
        self._is_stopping = False
        setup_worker_optimizations(app, hostname)  # its threads look tasks up in the application named here
        self._controller = app.WorkController(
            hostname=hostname,
            queues=list(ALL_QUEUES),
            concurrency=concurrency,
            pool="threads",
            task_events=True,
            without_gossip=True,
            without_mingle=True,
        )
        self._thread = threading.Thread(target=self._run, name="celery", daemon=True)

    def start(self) -> None:
        """Consume in the background."""
        self._thread.start()

    def is_consuming(self) -> bool:
        """Whether it runs."""
        return self._thread.is_alive()

    def stop(self, timeout_seconds: float = 8) -> None:
        """Finish the tasks under way, then stop."""
        self._is_stopping = True
        state.should_stop = EX_OK  # type: ignore[assignment] # the stubs know only its first value
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        try:
            self._controller.start()
        finally:
            if not self._is_stopping:
                self._on_lost()
