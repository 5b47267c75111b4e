"""A Redis of our own on loopback: only a cache, so nothing of it is kept over a restart."""

import os
import shutil
from pathlib import Path

import psutil
import redis

from deploy.data_directory import DataDirectory, write_private
from deploy.ports import LOOPBACK, RememberedPorts
from deploy.server import LocalServer
from models.errors import ConfigurationError

_NAME = "redis"
_PROGRAMS = ("redis-server", "valkey-server")


class RedisServer(LocalServer):
    """Memory only, bounded, least recently used out first.

    Args:
        directory: Prepared; holds the configuration with the generated password (0600).
    """

    programs = frozenset(_PROGRAMS)
    main_program = _PROGRAMS[0]

    def __init__(self, directory: DataDirectory) -> None:
        super().__init__(_NAME, directory.path / _NAME, directory.log_file(_NAME))
        self._directory = directory
        self._ports = RememberedPorts(directory.run / "ports.json")
        self._port: int | None = None

    @property
    def port(self) -> int:
        """Its loopback port, remembered over restarts."""
        if self._port is None:
            self._port = self._ports.recall(_NAME) or self._ports.choose(_NAME)
        return self._port

    @property
    def url(self) -> str:
        """``redis://`` with the generated password, database 0."""
        return f"redis://:{self._directory.secret(_NAME)}@{LOOPBACK}:{self.port}/0"

    def is_ready(self) -> bool:
        """Whether it answers PING to our password."""
        client = redis.Redis.from_url(self.url, socket_timeout=1, socket_connect_timeout=1)
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()

    def launch(self) -> None:
        """Adopt a survivor, or start anew.

        Raises:
            ConfigurationError: No such program here; the message names the package.
        """
        if self._port is None:
            known = self._ports.recall(_NAME)
            self._port = known if known and self._survivor() else self._ports.choose(_NAME)
        self._workplace.mkdir(mode=0o700, exist_ok=True)
        super().launch()

    def _spawn(self) -> psutil.Process:
        program = find_redis()
        configuration = self._workplace / "redis.conf"
        write_private(configuration, self._configuration())
        log = self._directory.open_log(_NAME)
        try:
            return psutil.Popen(
                [program, str(configuration)],
                stdin=-3,  # DEVNULL
                stdout=log,
                stderr=log,
                cwd=self._workplace,
                start_new_session=True,
                umask=0o077,
            )
        finally:
            os.close(log)

    def _configuration(self) -> str:
        return "\n".join(
            [
                f"bind {LOOPBACK}",
                f"port {self.port}",
                f'requirepass "{self._directory.secret(_NAME)}"',
                "daemonize no",
                'logfile ""',
                'save ""',
                "appendonly no",
                "maxmemory 64mb",
                "maxmemory-policy allkeys-lru",
                "",
            ]
        )


def find_redis() -> str:
    """The program, by the path.

    Raises:
        ConfigurationError: It is not installed; the message names the package.
    """
    search = os.pathsep.join(
        [os.environ.get("PATH", os.defpath), "/usr/bin", "/usr/local/bin", "/opt/homebrew/bin"]
    )
    for name in _PROGRAMS:
        program = shutil.which(name, path=search)
        if program is not None:
            return str(Path(program).absolute())
    raise ConfigurationError(
        "redis-server is not on this machine: install it (apt-get install redis-server), "
        "or set WAYBILL_REDIS_URL to a server of yours"
    )
