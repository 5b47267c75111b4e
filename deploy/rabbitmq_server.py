"""A RabbitMQ of our own on loopback, from this machine's binaries. Its queues are declared elsewhere."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import psutil
from amqp.exceptions import AMQPError
from kombu import Connection

from deploy.broker.policy import load_policy
from deploy.data_directory import DataDirectory, write_private
from deploy.ports import LOOPBACK, RememberedPorts
from deploy.server import LocalServer
from models.errors import ConfigurationError

_NAME = "rabbitmq"
_USER = _VHOST = "waybill"
_FREE_TO_START_MIB = 128  # below 50 MB RabbitMQ itself blocks every publisher
_KNOWN_PLACES = ("/usr/lib/rabbitmq/bin", "/usr/local/sbin", "/opt/homebrew/sbin", "/opt/homebrew/bin")
_DEBIAN_WRAPPER = "rabbitmq-script-wrapper"  # does ``su rabbitmq``: not for a node of our own
_QUIET_SCHEDULERS = "+sbwt none +sbwtdcpu none +sbwtdio none"
"""Erlang's schedulers do not spin while idle: on two cores they would take them from the workers."""


class RabbitMQServer(LocalServer):
    """One node with user and vhost ``waybill``, management plug-in for Flower, all on loopback.

    It has its own Erlang port mapper (``epmd``), home, cookie, node name and ports, so it meets neither
    the machine's RabbitMQ nor another data directory's. Valid for RabbitMQ 3.10 to 4.x.

    Args:
        directory: Prepared; holds configuration, messages and the generated password.
    """

    programs = frozenset({"beam.smp", "beam", "epmd", "erl_child_setup", "inet_gethost"})
    main_program = "beam.smp"
    start_timeout_seconds = 120.0

    def __init__(self, directory: DataDirectory) -> None:
        super().__init__(_NAME, directory.path / _NAME, directory.log_file(_NAME))
        self._directory = directory
        self._ports = RememberedPorts(directory.run / "ports.json")
        self._chosen: dict[str, int] = {}

    @property
    def port(self) -> int:
        """The AMQP port."""
        return self._port_of(_NAME)

    @property
    def management_port(self) -> int:
        """The HTTP port of the management plug-in."""
        return self._port_of("rabbitmq-management")

    @property
    def url(self) -> str:
        """``amqp://`` with the generated password, vhost ``waybill``."""
        return f"amqp://{_USER}:{self._directory.secret(_NAME)}@{LOOPBACK}:{self.port}/{_VHOST}"

    @property
    def api_url(self) -> str:
        """The management API, as Flower takes it."""
        return f"http://{_USER}:{self._directory.secret(_NAME)}@{LOOPBACK}:{self.management_port}/api/"

    @property
    def node(self) -> str:
        """Its Erlang node name, unlike any other on the machine."""
        return f"waybill-{self._directory.digest}@localhost"

    def is_ready(self) -> bool:
        """Whether it opens a channel for our user."""
        try:
            with Connection(self.url, connect_timeout=3) as connection:
                connection.connect()
                connection.default_channel  # noqa: B018 - opens one
        except (OSError, AMQPError):
            return False
        return True

    def launch(self) -> None:
        """Adopt a surviving node, or start one on the messages that are there.

        Raises:
            ConfigurationError: Not installed, no room, or no port.
        """
        if not self._chosen:
            keep = self._survivor() is not None
            for name in (_NAME, "rabbitmq-management", "rabbitmq-distribution", "rabbitmq-epmd"):
                known = self._ports.recall(name)
                self._chosen[name] = known if keep and known else self._ports.choose(name)
        self._workplace.mkdir(mode=0o700, exist_ok=True)
        super().launch()

    def _port_of(self, name: str) -> int:
        return self._chosen.get(name) or self._ports.recall(name) or self._ports.choose(name)

    def _spawn(self) -> psutil.Process:
        program = find_rabbitmq()
        self._directory.require_free(_FREE_TO_START_MIB)
        self._write_configuration()
        environment = self._environment()
        log = self._directory.open_log(_NAME)
        try:
            epmd = shutil.which("epmd", path=environment["PATH"])
            if epmd is not None:  # else RabbitMQ starts one itself, which we end all the same
                self._popen([epmd, "-address", LOOPBACK], environment, log)
            return self._popen([program], environment, log)
        finally:
            os.close(log)

    def _popen(self, command: list[str], environment: dict[str, str], log: int) -> psutil.Process:
        return psutil.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=self._workplace,
            env=environment,
            start_new_session=True,
            umask=0o077,
        )

    def _environment(self) -> dict[str, str]:
        """All of it: nothing of ``/etc/rabbitmq`` or of the caller's ``RABBITMQ_*`` reaches this node."""
        home = self._workplace
        path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/bin", "/usr/bin", "/bin"])
        return {
            "PATH": path,
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "ERL_EPMD_PORT": str(self._port_of("rabbitmq-epmd")),
            "RUNNING_UNDER_SYSTEMD": "true",  # the script then becomes the server instead of its parent
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_DIST_PORT": str(self._port_of("rabbitmq-distribution")),
            "RABBITMQ_CONF_ENV_FILE": str(home / "no-rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(home / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "enabled_plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(home / "generated"),
            "RABBITMQ_MNESIA_BASE": str(home / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self._directory.log),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(home / "rabbitmq.pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                f"{_QUIET_SCHEDULERS} -kernel inet_dist_use_interface {{127,0,0,1}}"
            ),
        }

    def _write_configuration(self) -> None:
        home = self._workplace
        secret = self._directory.secret(_NAME)
        cookie = home / ".erlang.cookie"
        if not cookie.exists():
            write_private(cookie, self._directory.secret("erlang-cookie"))
            cookie.chmod(0o400)
        write_private(home / "advanced.config", "[].\n")
        write_private(home / "enabled_plugins", "[rabbitmq_management].\n")
        write_private(home / "definitions.json", json.dumps(_definitions(secret)) + "\n")
        lines = [
            f"listeners.tcp.1 = {LOOPBACK}:{self.port}",
            f"management.tcp.ip = {LOOPBACK}",
            f"management.tcp.port = {self.management_port}",
            f"load_definitions = {home / 'definitions.json'}",
            "log.console = true",
            "log.console.level = info",
            "disk_free_limit.absolute = 50MB",
            "",
        ]
        write_private(home / "rabbitmq.conf", "\n".join(lines))


def _definitions(password: str) -> dict[str, object]:
    """Imported at every boot: our user is right even on messages kept from before a new password."""
    everything = ".*"
    return {
        "vhosts": [{"name": _VHOST}],
        "users": [{"name": _USER, "password": password, "tags": "administrator"}],
        "permissions": [
            {"user": _USER, "vhost": _VHOST, "configure": everything, "write": everything, "read": everything}
        ],
        "policies": [
            {"vhost": _VHOST, "name": limit.name, **limit.document()} for limit in load_policy().limits
        ],
    }


def find_rabbitmq() -> str:
    """The server's own start script, never Debian's wrapper that switches users.

    Raises:
        ConfigurationError: It is not installed; the message names the package.
    """
    search = [*_KNOWN_PLACES, *os.environ.get("PATH", os.defpath).split(os.pathsep)]
    for place in search:
        program = Path(place) / "rabbitmq-server"
        if os.access(program, os.X_OK) and program.resolve().name != _DEBIAN_WRAPPER:
            return str(program)
    raise ConfigurationError(
        "rabbitmq-server is not on this machine: install it (apt-get install rabbitmq-server), "
        "or set WAYBILL_BROKER_URL to a server of yours"
    )
