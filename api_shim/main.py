"""``waybill api``: one API process, from settings to exit status."""

import asyncio
import logging
import resource
from collections.abc import Sequence
from contextlib import suppress

from api_shim.announcing import JobAnnouncer
from api_shim.routes.explain import QueueLook, unknown_queue
from api_shim.routes.health import ReadinessCheck
from api_shim.server import POOL_SIZE, bound_socket, build, server_of
from api_shim.web.guarded_server import PATIENCE_SECONDS
from models import log
from models.container import Container
from models.settings import Settings
from models.stop_deadline import StopDeadline, ignore_signals
from tasks.announcer import Announcer
from tasks.app import make_app
from tasks.presence import Presence

_log = logging.getLogger("waybill.api")
_MOST_FILES = 65_536


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT.

    Returns:
        The exit status: 0 after a clean stop.

    Raises:
        ConfigurationError: A setting is wrong, or the port is taken.
    """
    app = make_app(settings)
    announcer, presence = Announcer(app), Presence(app)

    async def what_is_missing() -> str | None:
        return await asyncio.to_thread(presence.missing)

    try:
        return serve(settings, announcer, [ReadinessCheck("broker", what_is_missing)], look=presence.queue)
    finally:
        announcer.close()
        presence.close()


def serve(
    settings: Settings,
    announcer: JobAnnouncer,
    checks: Sequence[ReadinessCheck] = (),
    *,
    look: QueueLook = unknown_queue,
    patience_seconds: float = PATIENCE_SECONDS,
) -> int:
    """Serve with this announcer, these readiness checks and this look at queues, until told to stop.

    For a main thread. Further signals are ignored from then on: the process ends, and is gone in time.
    """
    log.configure(settings.log_level)
    _take_all_file_descriptors()
    container = Container(settings, role="api", pool_size=POOL_SIZE)
    listener = bound_socket(settings)
    edge = build(container, announcer, checks, look=look)
    host, port = listener.getsockname()[:2]
    server = server_of(edge, host, port, on_signal=StopDeadline().begin, patience_seconds=patience_seconds)
    # uvicorn raises the signal again once it has stopped; that must not end us before we let go.
    ignore_signals()
    _log.info("listening", extra={"host": host, "port": port})
    try:
        server.run(sockets=[listener])
    finally:
        container.close()
    return 0 if server.started else 1


def _take_all_file_descriptors() -> None:
    """Raise the soft limit, often 1,024, to the hard one: each client that waits needs a descriptor."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if most == resource.RLIM_INFINITY else min(most, _MOST_FILES)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
