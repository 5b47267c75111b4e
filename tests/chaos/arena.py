"""The arena: the platform as ``waybill up --full`` runs it, but with a faulty link between every pair.

Its processes are those of ``deploy/children.py`` and a second API, kept by the launcher's own supervisor.
Only their URLs differ: each kind of process reaches each server through a link of its own. The servers belong
to the arena, which may kill and wipe them, not to the supervisor. What to break and when: ``faults.py``.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psutil

from deploy import children, schema
from deploy.account import Account
from deploy.broker.inspection import vhost_of
from deploy.broker.management import Management
from deploy.broker.membership import membership
from deploy.child import Child, ChildSpec
from deploy.data_directory import DataDirectory
from deploy.ports import free_port
from deploy.postgres_server import PostgresServer
from deploy.rabbitmq_server import RabbitMQServer
from deploy.readiness import ask_ready
from deploy.redis_server import RedisServer
from deploy.supervisor import Supervisor
from models import failpoints
from models.database import Database
from models.settings import Settings
from tests.chaos import brittle, clocks, crates, witness
from tests.chaos.clocks import Clock
from tests.kit.disks import Disk, can_mount
from tests.kit.faulty_link import FaultyLink
from tests.kit.rabbitmq_cluster import RabbitMQCluster
from tests.kit.replicated_postgres import ReplicatedPostgres
from tests.kit.servers import temporary_data_directory
from tests.kit.upstream import ManagementApi
from tests.kit.waiting import wait_until

CHECKOUT = Path(__file__).parents[2]
ADMIN, PASSWORD = "admin@waybill.local", "correct horse battery staple"
KINDS = ("api", "worker", "consumer")
SERVERS = ("postgres", "rabbitmq", "redis")
APIS = ("api", "api-2")
"""Processes of one kind that clients choose from."""
_WIDE_LIMITS = "=9000000/minute,".join(
    ["list", "read", "write", "delete", "bulk", "jobs", "control", "login"]
)
"""So wide that they bind nobody, and not ``off``: the limiter shall ask Redis."""

_RESOURCES = (brittle.__name__, crates.__name__)

_PLANTED = (
    "import sys; from tests.chaos import bugs; bugs.plant(sys.argv.pop(1)); "
    "from deploy.cli import main; main()"
)
"""The command line, with a bug planted beforehand."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What the platform holds.

    Attributes:
        memory: Resident bytes by kind of process, the largest of its processes.
        files: Open descriptors, likewise.
        database_connections: Of all processes together.
    """

    memory: Mapping[str, int]
    files: Mapping[str, int]
    database_connections: int


class Arena:
    """A running platform that may be broken.

    Args:
        directory: Prepared, of its own.
        output: Receives what its processes say.
        receiver_port: Where callbacks are taken, and where the third party is.
        bugs: Of ``bugs.py`` to be planted in its processes, comma-separated; empty: none.

    Attributes:
        deleted_queues: Those that RabbitMQ could not restore after its disk was full.
    """

    def __init__(self, directory: DataDirectory, output: Path, *, receiver_port: int, bugs: str = "") -> None:
        self.directory = directory
        self._bugs = bugs
        self._receiver_port = receiver_port
        self._failpoints = directory.path / "failpoints"
        self._environment: dict[str, str] = {}
        self.postgres: PostgresServer | ReplicatedPostgres = PostgresServer(directory)
        self.rabbitmq: RabbitMQServer | RabbitMQCluster = RabbitMQServer(directory)
        self.redis = RedisServer(directory)
        self.links: dict[str, FaultyLink] = {}
        self.api_ports = {name: free_port() for name in APIS}
        self.output = output
        self.disks = self._disks() if can_mount() else {}
        self.clocks: dict[str, Clock] = {}
        self.deleted_queues: list[str] = []
        self._tools = directory.path / "tools"
        self._tools.mkdir()
        self._clock_library = clocks.build(self._tools) if clocks.can_be_set() else None
        self._supervisor = Supervisor(directory.run / "processes.json", longest_delay_seconds=0.4)
        self._children: list[Child] = []
        self._must_stop = threading.Event()
        self._is_launched = threading.Event()
        # One thread launches and watches: the processes die with the thread that made them.
        self._keeper = threading.Thread(target=self._keep, name="supervisor")

    # ---- beginning and end -------------------------------------------------------------

    def start(self) -> None:
        """Start servers, links and processes, and wait until the platform says that it is ready."""
        for disk in self.disks.values():
            disk.mount()
        for server in (self.rabbitmq, self.redis, self.postgres):
            server.launch()
        for server in (self.rabbitmq, self.redis, self.postgres):
            server.wait_ready()
        settings = self._settings()
        schema.prepare(settings)
        _make_tables(self.postgres.url)
        witness.install(self.postgres.url)
        self._failpoints.mkdir()
        for name, port in self._targets().items():
            for kind in KINDS:
                self.add_link(f"{kind}-{name}", port)
        for name, port in self.api_ports.items():
            self.add_link(f"client-{name}", port)
        self.add_link("worker-receiver", self._receiver_port)
        self.directory.empty_metrics()
        specs = [spec for spec in children.FULL if spec.name != "flower"]
        specs += [replace(spec, name=name) for spec in specs if spec.name == "api" for name in APIS[1:]]
        self._children = [self._child(spec, settings) for spec in specs]
        self._keeper.start()
        self._is_launched.wait(60)
        wait_until(
            self.is_ready,
            timeout_seconds=120,
            every_seconds=0.2,
            what="the platform is ready",
        )

    def stop(self) -> None:
        """End everything."""
        self.let_all_go_on()
        self._must_stop.set()
        if self._keeper.ident is not None:
            self._keeper.join(60)
        for link in self.links.values():
            link.close()
        for server in (self.rabbitmq, self.redis, self.postgres):
            server.kill()
        for disk in self.disks.values():
            disk.unmount()

    def is_ready(self) -> bool:
        """What each API says of the platform, asked without a link."""
        return all(ask_ready(url).is_ready for url in self.direct_urls)

    # ---- links -------------------------------------------------------------------------

    @property
    def urls(self) -> list[str]:
        """Where clients find the APIs: each behind a link."""
        return [f"http://127.0.0.1:{self.links[f'client-{name}'].port}" for name in APIS]

    @property
    def direct_urls(self) -> list[str]:
        """The APIs without a link."""
        return [f"http://127.0.0.1:{port}" for port in self.api_ports.values()]

    def add_link(self, name: str, port: int) -> FaultyLink:
        """A further link."""
        link = self.links[name] = FaultyLink(name, port)
        return link

    def heal(self) -> None:
        """Fair weather everywhere, the right time, and nobody stopped."""
        for link in self.links.values():
            link.heal()
        for clock in self.clocks.values():
            clock.set(0)
        self.let_all_go_on()

    # ---- processes ---------------------------------------------------------------------

    def mains(self, kind: str) -> list[psutil.Process]:
        """The main processes of a kind: of workers there are four."""
        found = []
        for child in self._children:
            pid = child.pid
            if kind in child.kinds and pid is not None:
                with suppress(psutil.Error):
                    found.append(psutil.Process(pid))
        return found

    def pool(self, kind: str = "worker") -> list[psutil.Process]:
        """The children of those: Celery's pool processes."""
        found: list[psutil.Process] = []
        for main in self.mains(kind):
            with suppress(psutil.Error):
                found += main.children(recursive=True)
        return found

    def let_all_go_on(self) -> None:
        """SIGCONT for everything of ours that was stopped."""
        for kind in KINDS:
            for process in [*self.mains(kind), *self.pool(kind)]:
                with suppress(psutil.Error):
                    process.resume()

    def footprint(self) -> Footprint:
        """What it holds now."""
        memory: dict[str, int] = {}
        files: dict[str, int] = {}
        for kind in KINDS:
            for process in [*self.mains(kind), *self.pool(kind)]:
                with suppress(psutil.Error):
                    memory[kind] = max(memory.get(kind, 0), process.memory_info().rss)
                    files[kind] = max(files.get(kind, 0), process.num_fds())
        connections = sum(link.connections for name, link in self.links.items() if name.endswith("-postgres"))
        return Footprint(memory, files, connections)

    def run_command(self, *arguments: str) -> int:
        """Run ``waybill`` with these arguments, as one of its processes; the exit status."""
        with self.output.open("ab") as output:
            command = (sys.executable, "-P", "-m", "deploy.cli", *arguments)
            return subprocess.run(
                command, env=self._environment, stdout=output, stderr=output, timeout=45, check=False
            ).returncode

    # ---- failpoints --------------------------------------------------------------------

    def arm(self, failpoint: str) -> None:
        """Have the next process that comes to a failpoint kill itself there."""
        (self._failpoints / failpoint).touch()

    def disarm(self, failpoint: str) -> None:
        """Let processes pass again, where none has come."""
        (self._failpoints / failpoint).unlink(missing_ok=True)

    def is_armed(self, failpoint: str) -> bool:
        """Whether nobody has come to it since it was armed."""
        return (self._failpoints / failpoint).exists()

    # ---- servers -----------------------------------------------------------------------

    def wipe_rabbitmq(self) -> None:
        """Kill the broker, forget all that it held, and start it anew."""
        self.rabbitmq.kill()
        shutil.rmtree(self.directory.path / "rabbitmq" / "mnesia", ignore_errors=True)
        self.rabbitmq.start()

    def restart(self, name: str) -> None:
        """Start a server again that was killed."""
        server = {"postgres": self.postgres, "rabbitmq": self.rabbitmq, "redis": self.redis}[name]
        server.launch()
        server.wait_ready()

    def delete_lost_queues(self) -> None:
        """Do what ``waybill doctor`` tells its operator to, of queues that RabbitMQ could not restore."""
        management, vhost = Management(self.rabbitmq.api_url), vhost_of(self.rabbitmq.url)
        with suppress(AssertionError):
            wait_until(lambda: not membership(management, vhost).lost, timeout_seconds=5, what="leaders")
        lost = membership(management, vhost).lost
        for queue in lost:
            ManagementApi(self.rabbitmq.api_url).call("DELETE", f"/queues/{vhost}/{queue}")
        self.deleted_queues += lost

    # ---- inside ------------------------------------------------------------------------

    def _targets(self) -> dict[str, int]:
        """Ports of servers, by the second half of the name of their links."""
        return {"postgres": self.postgres.port, "rabbitmq": self.rabbitmq.port, "redis": self.redis.port}

    def _linked(self, kind: str, name: str, url: str) -> str:
        """A server's URL, for processes of this kind."""
        return through(url, self.links[f"{kind}-{name}"].port)

    def _disks(self) -> dict[str, Disk]:
        """Redis has none: it keeps nothing."""
        account = Account.unprivileged()  # PostgreSQL refuses root
        owner = (account.uid, account.gid) if account.uid is not None and account.gid is not None else None
        return {
            "postgres": Disk(self.directory.path / "postgres", owner),
            "rabbitmq": Disk(self.directory.path / "rabbitmq" / "mnesia"),
            "run": Disk(self.directory.run),
        }

    def _settings(self) -> Settings:
        return Settings(
            _env_file=None,
            database_url=self.postgres.url,
            broker_url=self.rabbitmq.url,
            redis_url=self.redis.url,
            broker_api_url=self.rabbitmq.api_url,
            data_dir=self.directory.path,
            api_port=self.api_ports["api"],
            admin_email=ADMIN,
            admin_password=PASSWORD,
            rate_limits=_WIDE_LIMITS + "=9000000/minute",
            callback_allow_private=True,
        )

    def _child(self, spec: ChildSpec, settings: Settings) -> Child:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("WAYBILL_")}
        environment = children.child_environment(settings, inherited)
        (kind,) = spec.kinds
        for name in SERVERS:
            variable = {"postgres": "DATABASE", "rabbitmq": "BROKER", "redis": "REDIS"}[name]
            url = environment[f"WAYBILL_{variable}_URL"]
            environment[f"WAYBILL_{variable}_URL"] = self._linked(kind, name, url)
        if kind == "api":
            environment["WAYBILL_API_PORT"] = str(self.api_ports[spec.name])
        if self._clock_library is not None:
            file = self._tools / f"clock-{spec.name}"
            clock = self.clocks[spec.name] = Clock(file, self._clock_library)
            environment |= clock.environment()
        environment |= {
            "PYTHONPATH": str(CHECKOUT),
            "WAYBILL_CALLBACK_ALLOW_PRIVATE": "1",
            "WAYBILL_AMQP_PRINCIPALS": f'{{"waybill": "{ADMIN}"}}',
            "WAYBILL_RESOURCES": ",".join(_RESOURCES),
            "WAYBILL_SERVICES": self._services(),
            failpoints.VARIABLE: str(self._failpoints),
        }
        if kind == "worker":
            self._environment = environment
        if self._bugs:
            options = spec.command[spec.command.index("deploy.cli") + 1 :]
            spec = ChildSpec(
                spec.name, spec.kinds, (sys.executable, "-P", "-c", _PLANTED, self._bugs, *options)
            )
        return _QuietChild(spec, environment, self.output)

    def _services(self) -> str:
        url = f"http://127.0.0.1:{self.links['worker-receiver'].port}/{crates.DEPOT}"
        return json.dumps({crates.DEPOT: {"url": url, "timeout_seconds": 5}})

    def _keep(self) -> None:
        try:
            for child in self._children:
                self._supervisor.add(child, child.kinds)
            self._is_launched.set()
            self._supervisor.watch(self._must_stop.is_set)
        finally:
            self._supervisor.stop(children.STOP_PHASES)


class _QuietChild(Child):
    """A child that writes to a file instead of to our output."""

    def __init__(self, spec: ChildSpec, environment: Mapping[str, str], output: Path) -> None:
        shell = ("/bin/sh", "-c", f'exec "$@" >>{output} 2>&1', "sh")
        super().__init__(ChildSpec(spec.name, spec.kinds, (*shell, *spec.command)), environment)


@contextmanager
def running_arena(
    output: Path, *, receiver_port: int, bugs: str = "", kind: type[Arena] = Arena
) -> Iterator[Arena]:
    """An arena for the length of a block; nothing is left of it."""
    with temporary_data_directory() as directory:
        arena = kind(directory, output, receiver_port=receiver_port, bugs=bugs)
        try:
            arena.start()
            yield arena
        finally:
            arena.stop()


def _make_tables(database_url: str) -> None:
    database = Database(database_url)
    with database.transaction() as connection:
        for module in (brittle, crates):
            module.TABLE.create(connection, checkfirst=True)
    database.close()


def through(url: str, port: int) -> str:
    """The same server, by another port."""
    parts = urlsplit(url)
    host = f"{parts.username or ''}:{parts.password}@127.0.0.1:{port}"
    return urlunsplit(parts._replace(netloc=host))
