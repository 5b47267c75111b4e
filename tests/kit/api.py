"""The API as a client meets it: a real server on a free port, a real database, jobs applied in the test."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import urllib3

from api_shim.routes.explain import QueueLook, unknown_queue
from api_shim.routes.health import ReadinessCheck
from api_shim.server import Edge, build, server_of
from models.container import Container
from models.errors import internal_problem
from models.identity.principals import Principal, Role
from models.identity.users import hash_password
from models.job import JobState, Priority
from models.ledger import Outcome
from models.migrate import migrate
from models.settings import Settings
from tasks.applier import Applier
from tests.kit.waiting import wait_until

PASSWORD = "correct horse battery staple"


@dataclass
class RecordingAnnouncer:
    """Remembers what it was told; applies it at once where ``applier`` is set."""

    announced: list[tuple[Priority, UUID]] = field(default_factory=list)
    delivered: list[UUID] = field(default_factory=list)
    applier: Applier | None = None

    def jobs(self, accepted: Mapping[Priority, Iterable[UUID]]) -> None:
        ids = [(priority, one) for priority, some in accepted.items() for one in some]
        self.announced += ids
        if self.applier is not None and ids:
            work = (self.applier, [one for _, one in ids])
            threading.Thread(target=lambda: work[0].apply(work[1]), daemon=True).start()

    def deliveries(self, ids: Iterable[UUID]) -> None:
        self.delivered += ids


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Api:
    """A running API and a client for it."""

    url: str
    port: int
    container: Container
    announcer: RecordingAnnouncer
    edge: Edge
    applier: Applier
    users: dict[Role, Principal]
    tokens: dict[Role, str]
    stop: Callable[[], None]
    _pool: urllib3.PoolManager = field(default_factory=lambda: urllib3.PoolManager(maxsize=64, retries=False))

    def request(
        self,
        method: str,
        path: str,
        *,
        role: Role | None = Role.USER,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        json_body: Any = None,
        body: bytes | str | None = None,
        timeout: float = 40,
    ) -> Answer:
        """Send a request, as the user of ``role`` unless it is None."""
        sent: dict[str, str] = {}
        if token is None and role is not None:
            token = self.tokens[role]
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        if json_body is not None:
            body = json.dumps(json_body)
        if body is not None:
            sent["Content-Type"] = "application/json"
        sent |= headers or {}
        answer = self._pool.request(
            method, self.url + path, headers=sent, body=body, timeout=timeout, redirect=False
        )
        lowered = {name.lower(): value for name, value in answer.headers.items()}
        return Answer(answer.status, lowered, answer.data)

    def apply(self, *jobs: str) -> None:
        """Do a worker's work on these jobs, here and now."""
        self.applier.apply([UUID(job) for job in jobs])

    def kill(self, job: str, message: str = "it broke", **error: Any) -> None:
        """The job has died, whatever it was."""
        problem = internal_problem("r") | {"message": message} | error
        outcome = Outcome(
            job_id=UUID(job), state=JobState.DEAD, attempt=8, error=problem, reason="RuntimeError"
        )
        with self.container.database.transaction() as connection:
            self.container.ledger.finish(connection, [outcome])

    @contextmanager
    def worker(self) -> Iterator[None]:
        """Have every job applied as soon as it is announced."""
        self.announcer.applier = self.applier
        try:
            yield
        finally:
            self.announcer.applier = None

    def create(self, name: str = "Ada", *, role: Role = Role.USER, **members: Any) -> Any:
        """An entity that exists."""
        answer = self.request("POST", "/api/v1/entities", role=role, json_body={"name": name, **members})
        assert answer.status == 202, answer.body
        self.apply(answer.json["id"])
        found = self.request("GET", answer.json["resultUrl"], role=role)
        assert found.status == 201, found.body
        return found.json

    def raw(self, data: bytes, *, timeout: float = 10) -> bytes:
        """Send bytes as they are; what came back until the server closed, or was silent where it may be."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            connection.sendall(data)
            received = b""
            connection.settimeout(timeout)
            try:
                while chunk := connection.recv(65536):
                    received += chunk
                    connection.settimeout(timeout if b"connection: close" in data.lower() else 1)
            except TimeoutError:
                pass
            except ConnectionResetError:
                pass
        return received


@contextmanager
def running_api(
    database_url: str,
    data_dir: Path,
    *,
    checks: Iterable[ReadinessCheck] = (),
    look: QueueLook = unknown_queue,
    **settings: Any,
) -> Iterator[Api]:
    """An API on a free port over ``database_url``, with a user of each role. Limits are off unless set."""
    settings.setdefault("rate_limits", "off")
    made = Settings(_env_file=None, database_url=database_url, data_dir=data_dir, **settings)
    container = Container(made, role="test", pool_size=12)
    container.registry  # noqa: B018 - its tables belong to the schema
    migrate(container.database.engine, create_tables=True)
    announcer = RecordingAnnouncer()
    edge = build(container, announcer, list(checks), look=look)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = server_of(edge, "127.0.0.1", port)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started or not thread.is_alive(), what="the API has started")
    users = {role: _user(container, role) for role in Role}
    applier = Applier(
        container.database,
        container.ledger,
        container.registry,
        container.users,
        container.views,
        container.retry_policy,
    )

    def begin_to_stop() -> None:
        server.should_exit = True

    tokens = {role: container.tokens.issue(user) for role, user in users.items()}
    try:
        url = f"http://127.0.0.1:{port}"
        yield Api(url, port, container, announcer, edge, applier, users, tokens, begin_to_stop)
    finally:
        begin_to_stop()
        thread.join(timeout=15)
        container.close()


_SERVE = """
import sys
from pathlib import Path
from api_shim.announcing import SilentAnnouncer
from api_shim.main import serve
from models.settings import Settings
url, data, port, lead, patience = sys.argv[1:]
settings = Settings(
    _env_file=None,
    database_url=url,
    data_dir=Path(data),
    api_port=int(port),
    drain_seconds=int(lead),
    rate_limits="off",
)
sys.exit(serve(settings, SilentAnnouncer(), patience_seconds=float(patience)))
"""


def serve(
    url: str, data_dir: Path, port: int, *, lead_seconds: int = 0, patience_seconds: float = 8
) -> "subprocess.Popen[str]":
    """An API as a process of its own, that announces nothing. The caller ends it."""
    arguments = (url, data_dir, port, lead_seconds, patience_seconds)
    return subprocess.Popen(
        [sys.executable, "-c", _SERVE, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )


_HASHES: list[str] = []


def _user(container: Container, role: Role) -> Principal:
    if not _HASHES:
        _HASHES.append(hash_password(PASSWORD))
    with container.database.transaction() as connection:
        known = container.users.by_email(connection, f"{role}@example.com")
        if known is not None:
            return known.principal
        return container.users.add(connection, f"{role}@example.com", _HASHES[0], role)


def now() -> float:
    """Seconds, for measuring how long something took."""
    return time.monotonic()
