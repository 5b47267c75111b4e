"""The edge put together: one application from a container, and the server that runs it."""

import asyncio
import errno
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from uvicorn import Config

from api_shim.announcing import JobAnnouncer
from api_shim.changes.hub import Hub
from api_shim.description.openapi import Documentation
from api_shim.gate.authentication import Authentication
from api_shim.gate.back_pressure import BackPressure
from api_shim.gate.limiter import Limiter
from api_shim.gate.memory_limiter import MemoryLimiter
from api_shim.gate.rate_limits import RateLimits
from api_shim.gate.redis_limiter import RedisLimiter
from api_shim.routes.auth import Auth
from api_shim.routes.bulk import Bulk
from api_shim.routes.callback_endpoints import CallbackEndpointRoutes
from api_shim.routes.dead_letters import DeadLetterRoutes
from api_shim.routes.deliveries import Deliveries
from api_shim.routes.events import Events
from api_shim.routes.explain import Explain, QueueLook, unknown_queue
from api_shim.routes.health import Health, ReadinessCheck, SchemaCheck
from api_shim.routes.jobs import Jobs, own_job, poll_batcher
from api_shim.routes.metrics import BacklogCollector, EdgeCollector, Metrics, OutboxCollector
from api_shim.routes.reads import Reads, load_batcher
from api_shim.routes.refusals import Refusals
from api_shim.routes.stream import Stream
from api_shim.routes.writes import Writes, intake_batcher
from api_shim.web.addresses import Proxies
from api_shim.web.app import App
from api_shim.web.cors import Cors
from api_shim.web.guarded_server import PATIENCE_SECONDS, GuardedServer
from api_shim.web.protocol import MAX_MESSAGE_BYTES, GuardedProtocol, GuardedWebSocket
from api_shim.web.router import Route, Router
from api_shim.web.threads import Threads
from models.audit import RefusalTrail
from models.cache.notices import CacheNotices
from models.container import Container
from models.cursor import Cursors
from models.deliveries.outbox import Outbox
from models.errors import ConfigurationError
from models.quotas import parse_quotas
from models.settings import Settings

POOL_SIZE = 11
"""Database connections of one API process: one for each batcher (4), the threads, log-ins, a spare one."""

DATABASE_THREADS = 4
LOGIN_THREADS = 2


@dataclass(frozen=True, slots=True)
class Edge:
    """An application with the two things that a server tells it.

    Attributes:
        app: For an ASGI server.
        health: Goes off when stopping begins.
        hub: Whoever waits in it goes home when nobody new comes in any more.
        lead_seconds: How long requests are still taken in after stopping began.
    """

    app: App
    health: Health
    hub: Hub
    lead_seconds: float


def build(
    container: Container,
    announcer: JobAnnouncer,
    checks: Sequence[ReadinessCheck] = (),
    *,
    look: QueueLook = unknown_queue,
) -> Edge:
    """Put the edge together; opens no connection.

    Args:
        container: This process's collaborators; its pool should hold :data:`POOL_SIZE` connections.
        announcer: Told of every accepted job.
        checks: What else must be so for ready, beside the database: broker, queues, workers.
        look: Asks the broker about a queue, for explaining.
    """
    database, ledger, registry = container.database, container.ledger, container.registry
    intake = intake_batcher(container.intake, announcer)
    polls = poll_batcher(database, ledger)
    loads = load_batcher(container.views)
    threads = Threads("database", DATABASE_THREADS, max_waiting=500)
    logins = Threads("login", LOGIN_THREADS, max_waiting=32)
    scrapes = Threads("operations", 2, max_waiting=50)
    brokers = Threads("brokers", 2, max_waiting=50)  # of their own: a silent broker must not hold up metrics
    hub = Hub(database, polls.call, most_streams=container.settings.streams_per_principal)
    waiters = hub.waiters
    authentication = Authentication(container.tokens, container.standings)
    cursors = Cursors(container.key("cursor"))
    notices = CacheNotices(database, container.cache) if container.redis is not None else None
    health = Health([ReadinessCheck("database", SchemaCheck(container, scrapes)), *checks])
    gauges = (
        BacklogCollector(database, ledger),
        OutboxCollector(database, Outbox()),
        EdgeCollector(database, lambda: container.standings.active),
    )
    metrics = Metrics(gauges, scrapes, is_multiprocess="PROMETHEUS_MULTIPROC_DIR" in os.environ)
    own = partial(own_job, polls, timedelta(days=container.settings.retention_days))
    refusals = Refusals(RefusalTrail(database), threads)
    jobs = Jobs(database, ledger, own, threads, waiters, cursors, announcer, registry)
    routes: list[Route] = [
        *Writes(registry, intake, waiters, logins, container.key("idempotency")).routes(),
        *Bulk(
            registry,
            container.intake,
            announcer,
            waiters,
            threads,
            container.key("idempotency"),
            container.capacity,
        ).routes(),
        *Reads(registry, database, ledger, container.views, loads, threads, waiters, cursors).routes(),
        *jobs.routes(),
        *Events(own, hub.watches, hub.audience, authentication).routes(),
        *Explain(database, own, threads, brokers, look, registry).routes(),
        *DeadLetterRoutes(database, own, container.redriver, threads, cursors, announcer, refusals).routes(),
        *CallbackEndpointRoutes(
            database,
            container.endpoints,
            threads,
            cursors,
            refusals,
            allow_private=container.settings.callback_allow_private,
        ).routes(),
        *Deliveries(database, container.endpoints, threads, cursors, announcer, refusals).routes(),
        *Auth(
            database,
            container.sign_in,
            container.second_factors,
            container.tokens,
            logins=logins,
            threads=threads,
        ).routes(),
        *health.routes(),
        *metrics.routes(),
    ]
    documentation = Documentation(registry)
    routes += documentation.routes(routes)

    async def stop() -> None:
        hub.end()
        if notices is not None:
            await asyncio.to_thread(notices.close)
        rooms = (intake, polls, loads, authentication, hub, threads, logins, scrapes, brokers)
        await asyncio.gather(*(asyncio.to_thread(room.close) for room in rooms))

    limiter = limiter_of(container.settings)
    limits = RateLimits(authentication, limiter, parse_quotas(container.settings.rate_limits))
    pressure = BackPressure(container.capacity, scrapes)
    stream = Stream(hub, polls.call, authentication)
    app = App(
        Router(routes),
        [limits, pressure],
        cors=Cors(container.settings.cors_origins),
        proxies=Proxies(container.settings.trusted_proxies),
        sockets={stream.route.path: stream},
        on_start=[limiter.start, pressure.start, *([notices.start] if notices is not None else [])],
        on_stop=[limiter.close, pressure.close, stop],
    )
    return Edge(app, health, hub, container.settings.drain_seconds)


def limiter_of(settings: Settings) -> Limiter:
    """Counts in Redis where there is one, else in this process alone. Opens no connection yet."""
    local = MemoryLimiter()
    return RedisLimiter(settings.redis_url, local) if settings.redis_url else local


def server_of(
    edge: Edge,
    host: str,
    port: int,
    *,
    on_signal: Callable[[], object] = lambda: None,
    patience_seconds: float = PATIENCE_SECONDS,
) -> GuardedServer:
    """The server for an edge: uvloop, httptools, our limits, no access log of its own."""
    config = Config(
        edge.app,
        host=host,
        port=port,
        loop="uvloop" if sys.platform != "win32" else "asyncio",
        http=GuardedProtocol,
        ws=GuardedWebSocket,
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_per_message_deflate=False,
        ws_ping_interval=20,
        ws_ping_timeout=20,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=2048,
        timeout_keep_alive=75,
    )
    return GuardedServer(
        config,
        on_signal=on_signal,
        on_draining=edge.health.stop,
        on_leaving=edge.hub.end,
        lead_seconds=edge.lead_seconds,
        patience_seconds=patience_seconds,
    )


def bound_socket(settings: Settings) -> socket.socket:
    """A listening address, taken before anything else is opened.

    Raises:
        ConfigurationError: It cannot be had; the message says why, and what to set.
    """
    host, port = settings.api_host, settings.api_port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except socket.gaierror as error:
        raise ConfigurationError(f"WAYBILL_API_HOST: {host} is no address of this machine") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigurationError(
                f"port {port} on {host} is taken: stop what listens there, or set WAYBILL_API_PORT"
            ) from error
        raise ConfigurationError(
            f"cannot listen on {host}:{port} ({error.strerror}): check WAYBILL_API_HOST and WAYBILL_API_PORT"
        ) from error
    listener.set_inheritable(True)
    return listener
