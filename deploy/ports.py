"""Which TCP ports are free, and which we chose before. Opens nothing for long."""

import errno
import json
import random
import socket
from collections.abc import Callable
from pathlib import Path

from deploy.data_directory import write_private
from models.errors import ConfigurationError

LOOPBACK = "127.0.0.1"
_LOWEST, _HIGHEST = 20_000, 32_767
"""Below the ports that Linux hands to outgoing connections (32768 and up): a remembered port then is
not taken by chance while its server is down."""


def bind_error(host: str, port: int) -> OSError | None:
    """Why a server could not listen here, or None if it could."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        return error
    return None


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server could listen here now."""
    return bind_error(host, port) is None


def free_port(*, avoid: frozenset[int] = frozenset(), choose: Callable[[int, int], int] | None = None) -> int:
    """A free loopback port below the ephemeral range, chosen at random so that neighbours rarely clash.

    Raises:
        ConfigurationError: A thousand tries found none.
    """
    pick = choose or random.SystemRandom().randint
    for _ in range(1000):
        port = pick(_LOWEST, _HIGHEST)
        if port not in avoid and is_free(port):
            return port
    raise ConfigurationError(
        f"no free port on {LOOPBACK} between {_LOWEST} and {_HIGHEST}: end what holds them"
    )


def require_port(host: str, port: int, setting: str) -> None:
    """See that a port of the user's choice can be bound.

    Args:
        host: Address to listen on.
        port: Port to listen on.
        setting: The environment variable that names the port, for the message.

    Raises:
        ConfigurationError: Taken, forbidden, or not an address of this machine.
    """
    error = bind_error(host, port)
    if error is None:
        return
    if error.errno == errno.EADDRINUSE:
        raise ConfigurationError(
            f"port {port} on {host} is taken: end what listens there, or set {setting} to a free port"
        )
    if error.errno == errno.EACCES:
        raise ConfigurationError(f"port {port} may not be bound by this user: set {setting} above 1023")
    raise ConfigurationError(
        f"cannot listen on {host} port {port} ({error.strerror}): check {setting} and its host"
    )


class RememberedPorts:
    """Ports by name, kept in a file so that a second start uses the same ones.

    Args:
        file: A small JSON object, made when missing; unreadable content counts as empty.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def choose(self, name: str) -> int:
        """The port chosen before if it is free now, else a new one."""
        known = self._read()
        port = known.get(name)
        if port is None or not is_free(port):
            port = free_port(avoid=frozenset(known.values()))
            self.remember(name, port)
        return port

    def remember(self, name: str, port: int) -> None:
        """Keep a port for the next start."""
        write_private(self._file, json.dumps(self._read() | {name: port}) + "\n")

    def recall(self, name: str) -> int | None:
        """The port chosen before, free or not."""
        return self._read().get(name)

    def _read(self) -> dict[str, int]:
        try:
            known = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return {}
        if not isinstance(known, dict):
            return {}
        return {str(name): port for name, port in known.items() if isinstance(port, int)}
