"""``run/waybill.env``: how a command in a second shell finds what ``waybill up`` runs. And who may run it."""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from deploy.data_directory import DataDirectory, write_private
from models.errors import ConfigurationError

NAMES = (
    "WAYBILL_DATABASE_URL",
    "WAYBILL_BROKER_URL",
    "WAYBILL_REDIS_URL",
    "WAYBILL_BROKER_API_URL",
    "WAYBILL_API_HOST",
    "WAYBILL_API_PORT",
    "WAYBILL_FLOWER_PORT",
)


def run_file(directory: DataDirectory) -> Path:
    """Where it stands; ``models.settings.load_settings`` reads it there."""
    return directory.run / "waybill.env"


def write_run_file(directory: DataDirectory, environment: Mapping[str, str]) -> None:
    """Write the URLs and ports that are in force (0600: they hold passwords)."""
    lines = [f"{name}={_quoted(environment[name])}" for name in NAMES if environment.get(name)]
    write_private(run_file(directory), "\n".join(lines) + "\n")


def remove_run_file(directory: DataDirectory) -> None:
    """Nothing runs any more."""
    run_file(directory).unlink(missing_ok=True)


def _quoted(value: str) -> str:
    """As python-dotenv reads it back; a ``$`` would be expanded, and in a URL ``%24`` means the same."""
    escaped = value.replace("$", "%24").replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


@contextmanager
def only_launcher(directory: DataDirectory) -> Iterator[None]:
    """Hold the data directory for one ``waybill up``; the lock dies with its process.

    Raises:
        ConfigurationError: Another one runs on it.
    """
    descriptor = os.open(directory.run / "up.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise ConfigurationError(
                f"waybill up runs on {directory.path} already (pid {holder}): "
                "stop it first, or set WAYBILL_DATA_DIR to another directory"
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)
