"""What a contender is: something that takes rows in and applies them. Waybill and each peer implement it."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tests.bench.processes import BenchFailure, free_port, is_listening, python, run, running, wait_until
from tests.bench.servers import Servers


@dataclass(frozen=True, slots=True)
class Door:
    """Where a contender takes HTTP requests."""

    port: int
    path: str
    token: str = ""


class Contender(Protocol):
    """One system under measurement.

    Attributes:
        name: How reports call it.
        database: Its own database on the shared server.
        applied_query: SQL that counts the rows whose work is done; the same meaning for everybody.
        setup: How it is run, in one line, for the report.
    """

    name: str
    database: str
    applied_query: str
    setup: str

    def reset(self) -> None:
        """A fresh database with its tables; empty queues."""

    def enqueue(self, count: int) -> None:
        """Hand in ``count`` jobs while no worker runs."""

    def workers(self) -> AbstractContextManager[None]:
        """Its workers, while the block runs; entered as soon as the process is launched."""

    def api(self) -> AbstractContextManager[Door]:
        """Its HTTP API, while the block runs; entered once it answers."""

    def verify(self, count: int) -> str:
        """Say in one line how its own records confirm that exactly ``count`` were applied.

        Raises:
            BenchFailure: They do not.
        """


@dataclass
class Peer:
    """A peer whose processes are command lines and whose table is that of :mod:`tests.bench.peers.entity`.

    Attributes:
        producer: Module that, run with a number, enqueues that many; empty where only HTTP feeds it.
        app: ``module:attribute`` of its ASGI application; empty where it has none.
    """

    name: str
    database: str
    setup: str
    servers: Servers
    logs: Path
    queues: tuple[str, ...]
    worker: list[str]
    producer: str = ""
    app: str = ""
    applied_query: str = "SELECT count(*) FROM entities"
    env: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.env = {
            "BENCH_DATABASE_URL": self.servers.database(self.database),
            "BENCH_BROKER_URL": self.servers.broker_url,
        }

    def reset(self) -> None:
        self.servers.recreate_database(self.database)
        run(python("tests.bench.peers.entity"), self.env)
        self.servers.purge(*self.queues)

    def enqueue(self, count: int) -> None:
        run(python(self.producer, str(count)), self.env)

    @contextmanager
    def workers(self) -> Iterator[None]:
        with running(self.worker, self.env, self.logs / f"{self.database}-worker.log"):
            yield

    @contextmanager
    def api(self) -> Iterator[Door]:
        port = free_port()
        argv = python("uvicorn", self.app, "--port", str(port))
        with running(argv, self.env, self.logs / f"{self.database}-api.log"):
            wait_until(lambda: is_listening(port), self.name)
            yield Door(port, "/api/v1/entities")

    def verify(self, count: int) -> str:
        return verify_counts(self, self.servers, {"entities": self.applied_query}, count)


def verify_counts(contender: Contender, servers: Servers, queries: Mapping[str, str], count: int) -> str:
    """Compare each query's count with ``count`` and say so in one line."""
    found = {}
    with servers.connect(contender.database) as connection:
        for label, query in queries.items():
            row = connection.execute(query).fetchone()
            found[label] = row[0] if row else 0
    text = ", ".join(f"{number} {label}" for label, number in found.items())
    if any(number != count for number in found.values()):
        raise BenchFailure(f"{contender.name}: {text}, but {count} were handed in")
    return text


def tutorial(servers: Servers, logs: Path) -> Peer:
    module = "tests.bench.peers.tutorial_celery"
    return Peer(
        name="tutorial Celery",
        database="bench_tutorial",
        setup="celery worker --concurrency 2 (prefork), one task and one ORM commit per row, all defaults",
        servers=servers,
        logs=logs,
        queues=("celery",),
        worker=python("celery", "-A", module, "worker", "--concurrency", "2"),
        producer=module,
    )


def dramatiq(servers: Servers, logs: Path) -> Peer:
    module = "tests.bench.peers.dramatiq_rows"
    return Peer(
        name="Dramatiq",
        database="bench_dramatiq",
        setup="dramatiq --processes 2 (8 threads each), one call and one ORM commit per row, all defaults",
        servers=servers,
        logs=logs,
        queues=("default", "default.DQ", "default.XQ"),
        worker=python("dramatiq", module, "--processes", "2"),
        producer=module,
    )


def fastapi(servers: Servers, logs: Path) -> Peer:
    module = "tests.bench.peers.fastapi_app"
    return Peer(
        name="FastAPI + Celery",
        database="bench_fastapi",
        setup="uvicorn, one process; ORM commit and apply_async() per request; "
        "celery worker --concurrency 2 (prefork), ORM commit per task; all defaults; no authentication",
        servers=servers,
        logs=logs,
        queues=("celery",),
        worker=python("celery", "-A", f"{module}:celery_app", "worker", "--concurrency", "2"),
        app=f"{module}:app",
        applied_query="SELECT count(*) FROM entities WHERE status = 'ACTIVE'",
    )
