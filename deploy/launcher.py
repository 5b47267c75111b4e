"""``waybill up`` from the first check to the last process ended. What runs: ``children.py``."""

import os
import threading
import time
from collections.abc import Callable, Iterable

import psycopg

from deploy import children, demo, schema, tokens
from deploy.child import CONFIGURATION_EXIT_STATUS, Child
from deploy.data_directory import DataDirectory
from deploy.greeting import login_lines, paste_lines, platform_lines, server_line
from deploy.ports import LOOPBACK, bind_error, free_port, require_port
from deploy.postgres_server import PostgresServer
from deploy.rabbitmq_server import RabbitMQServer
from deploy.readiness import ask_ready, http_url
from deploy.redis_server import RedisServer
from deploy.run_file import only_launcher, remove_run_file, write_run_file
from deploy.server import LocalServer
from deploy.stop_request import Stopped, StopRequest
from deploy.supervisor import Supervisor
from models.errors import ConfigurationError, WaybillError
from models.settings import Settings
from models.stop_deadline import ignore_signals

READY_TIMEOUT_SECONDS = 90.0
_PORT_PATIENCE_SECONDS = 2.0
"""A predecessor that was killed a moment ago may still be letting go of its port."""


class Launcher:
    """Starts servers and processes, keeps them running, ends them.

    Args:
        settings: Read without the run file of an earlier launcher.
        full: Start RabbitMQ and Redis too, where no URL names one.
        show: Receives the lines for people.
    """

    def __init__(self, settings: Settings, *, full: bool, show: Callable[[str], None]) -> None:
        self._directory = DataDirectory(settings.data_dir)
        self._settings = _changed(settings, data_dir=self._directory.path)
        self._full = full
        self._show = show
        self._own_servers: frozenset[str] = frozenset()
        self._stop = StopRequest()
        self._supervisor = Supervisor(self._directory.run / "processes.json")

    def run(self, demo_jobs: int | None = None) -> int:
        """Run until told to stop, or until the demo is over.

        Args:
            demo_jobs: Send so many jobs, then stop.

        Returns:
            The exit status: 0, or the demo's.

        Raises:
            ConfigurationError: It cannot run; everything that was started is ended again.
        """
        self._directory.prepare()
        with only_launcher(self._directory):
            self._stop.install()
            try:
                return self._run(demo_jobs)
            except Stopped:
                return 0
            finally:
                self._end()
                ignore_signals()

    def _run(self, demo_jobs: int | None) -> int:
        self._settle_ports()
        self._say(f"data directory {self._directory.path}")
        self._start_servers()
        environment = children.child_environment(self._settings, os.environ)
        if demo_jobs is not None:
            environment["WAYBILL_RATE_LIMITS"] = "off"
            environment.setdefault("WAYBILL_LOG_LEVEL", "WARNING")  # the progress is what one wants to see
        write_run_file(self._directory, environment)
        self._directory.empty_metrics()
        with self._stop.interrupts():
            password = schema.prepare(self._settings)
        try:
            self._start_children(environment)
        except ConfigurationError:
            if password is not None:  # this is the only time that it is known
                self._say_all(login_lines(self._settings, password))
            raise
        self._say_all(login_lines(self._settings, password))
        if self._stop():
            return 0
        if demo_jobs is not None:
            return self._run_demo(demo_jobs)
        self._say("Ready. Paste into another shell to submit a job and poll it:")
        for line in paste_lines(self._settings, password):
            self._show(line)
        self._supervisor.watch(self._stop)
        return 0

    def _end(self) -> None:
        if self._supervisor.is_busy:
            self._say("stopping")
            self._supervisor.stop(children.STOP_PHASES)
            self._say("stopped")
        self._directory.remove_metrics()
        remove_run_file(self._directory)

    def _settle_ports(self) -> None:
        """See that the two ports of the user's choice are free; 0 means any."""
        chosen = {
            name: free_port() for name in ("api_port", "flower_port") if getattr(self._settings, name) == 0
        }
        self._settings = _changed(self._settings, **chosen)
        settings = self._settings
        if settings.api_port == settings.flower_port:
            raise ConfigurationError("WAYBILL_API_PORT and WAYBILL_FLOWER_PORT are the same: change one")
        deadline = time.monotonic() + _PORT_PATIENCE_SECONDS
        wanted = [
            (settings.api_host, settings.api_port, "WAYBILL_API_PORT"),
            (LOOPBACK, settings.flower_port, "WAYBILL_FLOWER_PORT"),
        ]
        while time.monotonic() < deadline and any(bind_error(host, port) for host, port, _ in wanted):
            time.sleep(0.1)
        for host, port, setting in wanted:
            require_port(host, port, setting)

    def _start_servers(self) -> None:
        """Start what no URL names, side by side, and take their URLs into the settings."""
        settings = self._settings
        if self._full and settings.broker_url and not settings.has_broker:
            raise ConfigurationError("--full needs RabbitMQ: unset WAYBILL_BROKER_URL, which is memory://")
        rabbitmq = RabbitMQServer(self._directory) if self._full and not settings.broker_url else None
        redis = RedisServer(self._directory) if self._full and not settings.redis_url else None
        postgres = PostgresServer(self._directory) if not settings.database_url else None
        servers: list[LocalServer] = [server for server in (rabbitmq, redis, postgres) if server is not None]
        for server in servers:
            self._supervisor.add(server, (server.name,))
        self._own_servers = frozenset(server.name for server in servers)
        for server in servers:
            server.wait_ready(self._stop)
            if self._stop():
                raise Stopped
            self._say(server_line(server))
        if postgres is not None:
            self._settings = _changed(self._settings, database_url=postgres.url)
        if redis is not None:
            self._settings = _changed(self._settings, redis_url=redis.url)
        if rabbitmq is not None:
            api_url = settings.broker_api_url or rabbitmq.api_url
            self._settings = _changed(self._settings, broker_url=rabbitmq.url, broker_api_url=api_url)

    def _start_children(self, environment: dict[str, str]) -> None:
        """Start our own processes and wait until the platform says that it is ready."""
        table = children.FULL if self._settings.has_broker else children.EMBEDDED
        started = [Child(spec, environment) for spec in table]
        for child in started:
            self._supervisor.add(child, child.kinds)
        pids = [(child.name, child.pid) for child in started]
        self._say_all(platform_lines(self._settings, pids, own_servers=self._own_servers))
        api = http_url(self._settings.api_host, self._settings.api_port)
        deadline = time.monotonic() + READY_TIMEOUT_SECONDS
        while not self._stop():
            for ended in self._supervisor.check():
                if isinstance(ended, Child) and ended.exit_status == CONFIGURATION_EXIT_STATUS:
                    raise ConfigurationError(f"{ended.name} cannot run: its line above says why")
            answer = ask_ready(api)
            if answer.is_ready:
                return
            if time.monotonic() > deadline:
                raise ConfigurationError(
                    f"not ready after {READY_TIMEOUT_SECONDS:.0f} s: {answer.reason} (ask waybill doctor)"
                )
            time.sleep(0.1)

    def _say(self, line: str) -> None:
        self._show(f"waybill: {line}")

    def _say_all(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._say(line)

    def _run_demo(self, jobs: int) -> int:
        """Send jobs from a thread while this one, which forks, goes on supervising."""
        status = [1]
        settings = self._settings

        def send() -> None:
            try:
                status[0] = demo.run(
                    settings,
                    jobs,
                    token=lambda: tokens.mint(settings, settings.admin_email),
                    is_cancelled=self._stop,
                )
            except (WaybillError, psycopg.Error) as error:
                self._say(f"the demo failed: {' '.join(str(error).split())}")

        sender = threading.Thread(target=send, name="demo", daemon=True)
        sender.start()
        self._supervisor.watch(lambda: self._stop() or not sender.is_alive())
        sender.join(timeout=2)
        return status[0]


def _changed(settings: Settings, **fields: object) -> Settings:
    """A copy with other values, validated like any setting."""
    return Settings.model_validate(settings.model_dump() | fields)
