"""The arena with a RabbitMQ cluster of three nodes, and a PostgreSQL with a synchronous standby."""

import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from deploy.data_directory import DataDirectory
from tests.chaos.arena import KINDS, Arena, through
from tests.kit.disks import Disk
from tests.kit.faulty_link import Mode, Weather
from tests.kit.rabbitmq_cluster import RabbitMQCluster
from tests.kit.replicated_postgres import ReplicatedPostgres


class ClusteredArena(Arena):
    """Every process has a link to every node of the broker, and one to whatever database is the primary.

    Args:
        directory: Prepared, of its own.
        output: Receives what its processes say.
        receiver_port: Of the receiver of callbacks and effects.
        bugs: To be planted.
    """

    def __init__(self, directory: DataDirectory, output: Path, *, receiver_port: int, bugs: str = "") -> None:
        super().__init__(directory, output, receiver_port=receiver_port, bugs=bugs)
        self.postgres: ReplicatedPostgres = ReplicatedPostgres(directory)
        self.rabbitmq: RabbitMQCluster = RabbitMQCluster(directory)
        self._builder = ThreadPoolExecutor(1, thread_name_prefix="standby")
        self._built: Future[None] | None = None

    def stop(self) -> None:
        """End everything."""
        self._builder.shutdown(cancel_futures=True)
        for node in self.rabbitmq.nodes:  # for their words are wanted, and their room goes
            if node.log_file.exists():
                shutil.copy(node.log_file, self.output.with_name(f"{node.name}.log"))
        super().stop()
        self.rabbitmq.close()

    def heal(self) -> None:
        """Fair weather everywhere, nobody stopped, every server there."""
        super().heal()
        self.rabbitmq.start()
        self.await_standby()

    def wipe_rabbitmq(self) -> None:
        """Kill the broker, forget all that it held, and start it anew.

        Nobody reaches it before it is whole: a queue has members on the nodes that are there when it is
        declared, and RabbitMQ adds none by itself.
        """
        links = [link for name, link in self.links.items() if "-rabbitmq" in name]
        for link in links:
            link.set(Weather(Mode.RESET))
        self.rabbitmq.wipe()
        for link in links:
            link.heal()

    def promote(self) -> None:
        """Have the standby take over from a primary that is lost; it gets a standby of its own by and by."""
        self.postgres.fail_over(self._redirect)
        self._built = self._builder.submit(self.postgres.join_standby)

    def await_standby(self) -> None:
        """Wait for that one. Something may have kept it from being built: it is built now."""
        built, self._built = self._built, None
        if built is not None and built.exception() is not None:
            self.postgres.join_standby()

    def _redirect(self, port: int) -> None:
        for kind in KINDS:
            self.links[f"{kind}-postgres"].lead_to(port)

    def _disks(self) -> dict[str, Disk]:
        """None: its servers are several, each with a disk of its own."""
        return {}

    def _targets(self) -> dict[str, int]:
        first, *others = self.rabbitmq.nodes
        more = {f"rabbitmq-{number}": node.port for number, node in enumerate(others, 2)}
        return super()._targets() | {"rabbitmq": first.port} | more

    def _linked(self, kind: str, name: str, url: str) -> str:
        if name != "rabbitmq":
            return super()._linked(kind, name, url)
        links = [
            f"{kind}-rabbitmq",
            *(f"{kind}-rabbitmq-{n}" for n in range(2, len(self.rabbitmq.nodes) + 1)),
        ]
        return ";".join(
            through(one, self.links[link].port) for one, link in zip(url.split(";"), links, strict=True)
        )
