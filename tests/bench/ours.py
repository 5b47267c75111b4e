"""Waybill as a contender: its own command line, its own HTTP intake, everything on that production has.

The one place to adapt when commands or settings change. Celery events are on, job history and outbox
are written, tokens are checked; only the rate limits are off.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.ceiling import send_load
from tests.bench.contender import Door, verify_counts
from tests.bench.load import Order
from tests.bench.processes import BenchFailure, free_port, is_listening, python, run, running, wait_until
from tests.bench.servers import Servers

ADMIN_EMAIL = "bench@waybill.local"
CLI = "deploy.cli"
MIGRATE = python(CLI, "migrate")
CREATE_ADMIN = python(CLI, "user", "add", ADMIN_EMAIL, "--role", "admin", "--password", "bench-password-1")
MAKE_TOKEN = python(CLI, "token", ADMIN_EMAIL)
API = python(CLI, "api")
WORKER = python(CLI, "worker")
QUEUES = (
    "waybill.jobs",
    "waybill.jobs.high",
    "waybill.jobs.bulk",
    "waybill.deliveries",
    "waybill.jobs.dead",
)
ACCEPT_CONNECTIONS = 64


@dataclass
class Waybill:
    """Waybill itself, one API process and one worker of two prefork processes.

    Attributes:
        pids: The processes that run now, by what they are: ``api``, ``worker``. For the profiler.
    """

    servers: Servers
    logs: Path
    name: str = "Waybill"
    database: str = "bench_waybill"
    setup: str = (
        "one API process; one worker, prefork 2, Celery events on; token checked, history and outbox on"
    )
    applied_query: str = "SELECT count(*) FROM waybill.entities"
    pids: dict[str, int] = field(default_factory=dict)
    _token: str = ""

    @property
    def env(self) -> Mapping[str, str]:
        """Its settings: everything explicit, so that no file of the caller's shines through."""
        return {
            "WAYBILL_DATABASE_URL": self.servers.database(self.database),
            "WAYBILL_BROKER_URL": self.servers.broker_url,
            "WAYBILL_REDIS_URL": self.servers.redis_url,
            "WAYBILL_DATA_DIR": str(self.logs / "waybill"),
            "WAYBILL_ADMIN_EMAIL": ADMIN_EMAIL,
            "WAYBILL_RATE_LIMITS": "off",
            "WAYBILL_WORKER_CONCURRENCY": "2",
        }

    def reset(self) -> None:
        self.servers.recreate_database(self.database)
        run(MIGRATE, self.env)
        run(CREATE_ADMIN, self.env)
        self._token = run(MAKE_TOKEN, self.env).split()[-1]
        self.servers.purge(*QUEUES)

    def enqueue(self, count: int) -> None:
        """Accept through the HTTP API: authentication, validation, group commit and announcement included."""
        with self.api() as door:
            order = Order(
                port=door.port,
                path=door.path,
                token=door.token,
                requests=count,
                connections=ACCEPT_CONNECTIONS,
            )
            outcome = send_load(order)
        if outcome.accepted != count:
            raise BenchFailure(f"{self.name}: {count} requests, answered {outcome.statuses}")

    @contextmanager
    def workers(self) -> Iterator[None]:
        with running(WORKER, self.env, self.logs / f"{self.database}-worker.log") as process:
            self.pids["worker"] = process.pid
            try:
                yield
            finally:
                del self.pids["worker"]

    @contextmanager
    def api(self) -> Iterator[Door]:
        port = free_port()
        env = {**self.env, "WAYBILL_API_PORT": str(port)}
        with running(API, env, self.logs / f"{self.database}-api.log") as process:
            self.pids["api"] = process.pid
            try:
                wait_until(lambda: is_listening(port), self.name)
                yield Door(port, "/api/v1/entities", self._token)
            finally:
                del self.pids["api"]

    def verify(self, count: int) -> str:
        queries = {
            "entities": self.applied_query,
            "jobs succeeded": "SELECT count(*) FROM waybill.jobs WHERE state = 'succeeded'",
            "jobs in all": "SELECT count(*) FROM waybill.jobs",
        }
        return verify_counts(self, self.servers, queries, count)
