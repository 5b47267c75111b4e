"""Three RabbitMQ nodes of this machine in one cluster, which may be killed and frozen one by one."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
import urllib3

from deploy.data_directory import DataDirectory, write_private
from deploy.ports import LOOPBACK, free_port
from deploy.rabbitmq_server import RabbitMQServer, find_rabbitmq
from deploy.server import wait_ended
from tests.kit.servers import require, temporary_data_directory
from tests.kit.upstream import ManagementApi
from tests.kit.waiting import wait_until

_SHARED_SECRETS = ("rabbitmq", "erlang-cookie")


class ClusterNode(RabbitMQServer):
    """One node: a server like others, but for its name, the port mapper that all share, and its peers.

    Args:
        directory: Prepared, of its own; its secrets are the cluster's.
        number: From 1.
        peers: Node names of all, its own included.
        epmd_port: Where the cluster's port mapper listens.
    """

    start_timeout_seconds = 300.0

    def __init__(self, directory: DataDirectory, number: int, peers: list[str], epmd_port: int) -> None:
        super().__init__(directory)
        self.name = f"rabbitmq-{number}"
        self._number = number
        self._peers = peers
        self._epmd_port = epmd_port

    @property
    def node(self) -> str:
        """Its Erlang node name."""
        return self._peers[self._number - 1]

    def forget(self) -> None:
        """Remove all that it holds; only while it is down."""
        shutil.rmtree(self._workplace / "mnesia", ignore_errors=True)

    def _port_of(self, name: str) -> int:
        return self._epmd_port if name == "rabbitmq-epmd" else super()._port_of(name)

    def _write_configuration(self) -> None:
        super()._write_configuration()
        file = self._workplace / "rabbitmq.conf"
        lines = [
            "cluster_formation.peer_discovery_backend = classic_config",
            *(
                f"cluster_formation.classic_config.nodes.{n} = {node}"
                for n, node in enumerate(self._peers, 1)
            ),
            "queue_leader_locator = balanced",
            "",
        ]
        write_private(file, file.read_text() + "\n".join(lines))


class RabbitMQCluster:
    """Used like one server whose ``url`` is a list; and node by node.

    Args:
        directory: Prepared; holds a directory for each node.
        size: How many.
    """

    def __init__(self, directory: DataDirectory, size: int = 3) -> None:
        self._home = directory.path / "cluster"
        self._home.mkdir(mode=0o700)
        self._epmd_port = free_port()
        self._epmd: psutil.Popen | None = None
        peers = [f"waybill-{directory.digest}-{number}@localhost" for number in range(1, size + 1)]
        self.nodes = []
        for number in range(1, size + 1):
            own = DataDirectory(self._home / str(number))
            own.prepare()
            for secret in _SHARED_SECRETS:
                write_private(own.secrets / secret, directory.secret(secret) + "\n")
            self.nodes.append(ClusterNode(own, number, peers, self._epmd_port))

    # ---- like one server ---------------------------------------------------------------

    @property
    def url(self) -> str:
        """Every node, separated by ``;``."""
        return ";".join(node.url for node in self.nodes)

    @property
    def port(self) -> int:
        """The first node's."""
        return self.nodes[0].port

    @property
    def api_url(self) -> str:
        """The management API of the first node that lives."""
        return next((node for node in self.nodes if node.is_alive()), self.nodes[0]).api_url

    def api(self) -> ManagementApi:
        """The same, to be asked."""
        return ManagementApi(self.api_url)

    @property
    def pid(self) -> int | None:
        """The first node's."""
        return self.nodes[0].pid

    def leader_of(self, queue: str, vhost: str = "waybill") -> ClusterNode | None:
        """The node that leads a queue, as one that lives says; None while there is none."""
        try:
            found = self.api().call("GET", f"/queues/{vhost}/{queue}")
        except (urllib3.exceptions.HTTPError, AssertionError):
            return None
        return next((node for node in self.nodes if node.node == found.get("leader")), None)

    def launch(self) -> None:
        """Start every node that does not run; returns before they are ready."""
        if self._epmd is None:
            program = shutil.which("epmd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/bin"]))
            assert program is not None
            environment = {"PATH": os.defpath, "ERL_EPMD_PORT": str(self._epmd_port)}
            self._epmd = psutil.Popen(
                [program, "-address", LOOPBACK],
                env=environment,
                cwd=self._home,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        for node in self.nodes:
            if not node.is_alive():
                node.launch()

    def wait_ready(self) -> None:
        """Wait until every node answers, and has found the others."""
        for node in self.nodes:
            node.wait_ready()
        names = {node.node for node in self.nodes}
        wait_until(
            lambda: {one["name"] for one in self.api().call("GET", "/nodes") if one["running"]} == names,
            timeout_seconds=ClusterNode.start_timeout_seconds,
            what="the nodes have found each other",
        )

    def start(self) -> None:
        """Launch, and wait until it is ready."""
        self.launch()
        self.wait_ready()

    def kill(self) -> None:
        """End every node."""
        for node in self.nodes:
            node.kill()

    def wipe(self) -> None:
        """Forget all that it holds, and start it anew."""
        self.kill()
        for node in self.nodes:
            node.forget()
        self.start()

    def close(self) -> None:
        """End everything, the port mapper too."""
        self.kill()
        if self._epmd is not None:
            with suppress(psutil.Error):
                self._epmd.kill()
            wait_ended(self._epmd, 5)


@contextmanager
def rabbitmq_cluster() -> Iterator[RabbitMQCluster]:
    """Three nodes of this machine's RabbitMQ."""
    require(find_rabbitmq)
    with temporary_data_directory() as directory:
        cluster = RabbitMQCluster(directory)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.close()
