"""The embedded platform: API, worker threads, sweeper and Flower in one process, on ``memory://``."""

import os
import signal

from api_shim.main import serve
from api_shim.routes.health import ReadinessCheck
from deploy.flower import start_in_thread
from models import log
from models.settings import Settings
from tasks.announcer import Announcer
from tasks.app import make_app
from tasks.presence import Presence, QueueState
from tasks.worker import ThreadedWorker, make_pruner, make_sweeper, quieten

PATIENCE_SECONDS = 5
"""For requests under way."""

GRACE_SECONDS = 3
"""For tasks under way; whatever is cut off was one transaction, and is announced again."""


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; the exit status."""
    log.configure(settings.log_level)
    quieten()
    app = make_app(settings)
    announcer, presence = Announcer(app), Presence(app)
    sweeper, pruner = make_sweeper(settings, app), make_pruner(settings)
    worker = ThreadedWorker(
        app,
        concurrency=settings.worker_concurrency,
        hostname="waybill@embedded",
        on_lost=lambda: os.kill(os.getpid(), signal.SIGTERM),  # the launcher starts us anew, worker and all
    )
    flower = start_in_thread(settings, app)

    async def what_is_missing() -> str | None:
        return None if worker.is_consuming() else "the worker does not run"

    def look(queue: str) -> QueueState | None:
        state = presence.queue(queue)  # an in-memory queue does not know its consumers
        return None if state is None else QueueState(state.messages, int(worker.is_consuming()))

    worker.start()
    sweeper.start()
    pruner.start()
    try:
        return serve(
            settings,
            announcer,
            [ReadinessCheck("worker", what_is_missing)],
            look=look,
            patience_seconds=PATIENCE_SECONDS,
        )
    finally:
        flower.io_loop.add_callback(flower.stop)
        pruner.begin_to_stop()
        sweeper.begin_to_stop()
        pruner.stop()
        sweeper.stop()
        worker.stop(GRACE_SECONDS)
        announcer.close()
        presence.close()
