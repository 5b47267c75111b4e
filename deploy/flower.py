"""Flower beside the platform: one dashboard for workers, tasks and queues, behind the admin's password.

Flower keeps its own authentication in charge: what we add checks email and password against the users
table and hands the request on with a credential that only this process knows.
"""

import asyncio
import logging
import secrets
import signal
import threading
import time
from base64 import b64decode, b64encode
from hashlib import blake2b
from types import FrameType
from typing import Any
from weakref import WeakSet

from celery import Celery
from flower.app import Flower
from flower.options import default_options
from flower.urls import settings as flower_settings
from flower.views.broker import BrokerView
from sqlalchemy import Connection
from tornado import web
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.ioloop import IOLoop, PeriodicCallback
from tornado.netutil import bind_sockets

from models import log
from models.container import Container
from models.errors import BrokerUnavailable, ConfigurationError, RateLimited, Transient
from models.identity.users import User, password_matches
from models.settings import Settings
from models.stop_deadline import StopDeadline, ignore_signals
from tasks import names
from tasks.app import make_app
from tasks.publisher import Publisher

REMEMBERED_SECONDS = 60.0
"""How long a verified password is taken without hashing it again (Argon2 takes 150 ms)."""

DRAIN_SECONDS = 5.0
"""How long pages may take that are being made when Flower is told to stop."""

MEET_MILLISECONDS = 3000

_INTAKE_QUEUES = (names.INTAKE, names.EXPIRED_INTAKE, names.DEAD_INTAKE, names.DEAD_MESSAGES)
_log = logging.getLogger("waybill.flower")


class AdminGate:
    """Lets admins in by HTTP Basic.

    Args:
        container: Where the users are.
    """

    def __init__(self, container: Container) -> None:
        self._container = container
        self._guard = container.login_guard
        self._remembered: dict[bytes, float] = {}

    def admits(self, authorization: str, address: str) -> bool:
        """Whether ``authorization`` is HTTP Basic with an admin's email and password.

        Raises:
            RateLimited: Too many have failed for this email, or from this address; nothing was checked.
        """
        scheme, _, encoded = authorization.partition(" ")
        if scheme.lower() != "basic":
            return False
        digest = blake2b(encoded.encode()).digest()
        if self._remembered.get(digest, 0) > time.monotonic():
            return True
        try:
            email, _, password = b64decode(encoded, validate=True).decode().partition(":")
        except ValueError:  # no base64, no ASCII, or no UTF-8 within
            return False
        try:
            with self._container.database.snapshot() as connection:
                self._guard.check(connection, email, address)
                user = self._container.users.by_email(connection, email)
            is_right = password_matches(password, user)
            with self._container.database.transaction() as connection:
                if user is None or not is_right:
                    self._guard.failed(connection, email, address)
                elif user.principal.is_admin and not self._takes_a_code(connection, user):
                    self._guard.succeeded(connection, email, address)
        except Transient:
            return False
        if not is_right or user is None or not user.principal.is_admin:
            return False
        if len(self._remembered) > 1000:
            self._remembered.clear()
        self._remembered[digest] = time.monotonic() + REMEMBERED_SECONDS
        return True

    def _takes_a_code(self, connection: Connection, user: User) -> bool:
        """Whether the password is not all: failures are not forgotten for it, or codes could be guessed."""
        return self._container.second_factors.is_on(connection, user.principal.id)


class GuardedFlower(Flower):  # type: ignore[misc] # untyped library
    """Flower whose every request passes the gate first.

    Args:
        gate: Decides who comes in.
        options: Flower's.
    """

    def __init__(self, gate: AdminGate, options: Any, **others: Any) -> None:
        super().__init__(options=options, **others)
        self._gate = gate
        self._server = HTTPServer(self)
        self._under_way: WeakSet[HTTPServerRequest] = WeakSet()  # a caller who left is in it no more
        self._credential = f"waybill:{secrets.token_urlsafe(24)}"
        options.basic_auth = [self._credential]
        self.add_handlers(r".*", [web.url(r"/broker", _QueuesView, name="broker")])

    def find_handler(self, request: HTTPServerRequest, **others: Any) -> Any:
        """Replace a good password by the credential that Flower checks; let nothing else pass.

        Not its metrics either, which Flower itself leaves open.
        """
        self._under_way.add(request)
        try:
            is_admitted = self._gate.admits(request.headers.pop("Authorization", ""), str(request.remote_ip))
        except RateLimited as refusal:
            return self.get_handler_delegate(request, _Closed, {"retry_after": refusal.retry_after})
        if not is_admitted:
            return self.get_handler_delegate(request, _Closed)
        request.headers["Authorization"] = "Basic " + b64encode(self._credential.encode()).decode()
        return super().find_handler(request, **others)

    def log_request(self, handler: Any) -> None:
        """It has been answered."""
        self._under_way.discard(handler.request)
        super().log_request(handler)

    def start_http_server(self) -> None:
        """Listen."""
        self._server.add_sockets(bind_sockets(self.options.port, address=self.options.address))

    async def drain(self) -> None:
        """Listen no more, and wait a little until what was asked is answered; then stop the loop."""
        self._server.stop()
        until = time.monotonic() + DRAIN_SECONDS
        while self._under_way and time.monotonic() < until:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0)  # the last answer is on its way
        self.io_loop.stop()

    def start(self) -> None:
        """Serve until the loop is stopped."""
        PeriodicCallback(self._meet_workers, MEET_MILLISECONDS).start()
        super().start()

    def update_workers(self, workername: str | None = None) -> Any:
        """Ask workers how they are; not before one was heard of.

        Flower asks once, at its start, when ours start too, and would warn that nobody answers.
        """
        if workername is None and not self.events.state.workers:
            return asyncio.ensure_future(asyncio.sleep(0))
        return super().update_workers(workername)

    def _meet_workers(self) -> None:
        """Ask those that were heard of since: what Flower may control is what it has asked."""
        heard = {name for name, worker in self.events.state.workers.items() if worker.alive}
        if heard - set(self.workers):
            self.update_workers()


class _Closed(web.RequestHandler):
    """Asks for the password."""

    def initialize(self, retry_after: int | None = None) -> None:
        self._retry_after = retry_after

    def prepare(self) -> None:
        if self._retry_after is not None:
            self.set_status(429)
            self.set_header("Retry-After", str(self._retry_after))
            self.finish("Too many log-ins failed: try again later.\n")
            return
        self.set_status(401)
        self.set_header("WWW-Authenticate", 'Basic realm="Waybill"')
        self.finish("The admin's email and password, please.\n")


class _QueuesView(BrokerView):  # type: ignore[misc]
    """The Broker page: all of our queues, also on the broker that lives in this process."""

    def get_active_queue_names(self) -> list[str]:
        return [*names.ALL_QUEUES, *(_INTAKE_QUEUES if self.application.transport == "amqp" else ())]

    def get_broker(self) -> Any:
        if self.application.transport != "amqp":
            return _LocalQueues(self.capp)
        broker = super().get_broker()
        if broker.vhost == "/":  # Flower does not encode this one, and would ask for those of all vhosts
            broker.vhost = "%2F"
        return broker


class _LocalQueues:
    """Queue lengths of ``memory://``, in the shape that Flower's page shows."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    async def queues(self, wanted: list[str]) -> list[dict[str, Any]]:
        publisher = Publisher(self._app)
        try:
            depths = {name: publisher.depth(name) for name in wanted}
        except BrokerUnavailable:
            return []
        finally:
            publisher.close()
        return [{"name": name, "messages": depth, "messages_ready": depth} for name, depth in depths.items()]


def run(settings: Settings) -> int:
    """Serve Flower until SIGTERM or SIGINT; the exit status."""
    log.configure(settings.log_level)
    loop = IOLoop.current()
    flower = make_flower(settings, make_app(settings), loop)
    deadline = StopDeadline()
    draining: list[asyncio.Future[None]] = []

    def drain() -> None:
        if not draining:  # further signals change nothing
            draining.append(asyncio.ensure_future(flower.drain()))

    def stop(_signal: int, _frame: FrameType | None) -> None:
        deadline.begin()
        loop.add_callback_from_signal(drain)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    flower.start()
    flower.stop()
    ignore_signals()
    return 0


def start_in_thread(settings: Settings, app: Celery) -> GuardedFlower:
    """Serve Flower beside other things in this process: ``memory://`` queues are only visible here."""
    started: list[GuardedFlower | Exception] = []
    is_started = threading.Event()

    def serve() -> None:
        asyncio.set_event_loop(asyncio.new_event_loop())
        try:
            started.append(make_flower(settings, app, IOLoop.current()))
        except Exception as error:  # told to the caller below
            started.append(error)
            return
        finally:
            is_started.set()
        started[0].start()  # type: ignore[union-attr]

    threading.Thread(target=serve, name="flower", daemon=True).start()
    is_started.wait()
    if isinstance(started[0], Exception):
        raise started[0]
    return started[0]


def make_flower(settings: Settings, app: Celery, loop: IOLoop) -> GuardedFlower:
    """Flower, listening on loopback.

    Raises:
        ConfigurationError: The port is taken.
    """
    options = default_options
    options.port = settings.flower_port
    options.address = "127.0.0.1"
    options.broker_api = settings.broker_api_url or None
    options.max_tasks = 10_000
    options.purge_offline_workers = 60
    options.logging = "warning"
    gate = AdminGate(Container(settings, role="flower", pool_size=2))
    flower = GuardedFlower(gate, options, capp=app, io_loop=loop, **flower_settings)
    try:
        flower.start_http_server()
    except OSError as error:
        raise ConfigurationError(
            f"WAYBILL_FLOWER_PORT: port {settings.flower_port} is taken; name another"
        ) from error
    logging.getLogger("tornado.access").setLevel(logging.ERROR)
    _log.info("flower is up", extra={"url": f"http://127.0.0.1:{settings.flower_port}"})
    return flower
