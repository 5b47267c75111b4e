"""The data directory: its rooms, generated secrets and free space. Not what the servers keep in it."""

import hashlib
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from models.errors import ConfigurationError

_MEBIBYTE = 1024 * 1024
_LOG_LIMIT = 16 * _MEBIBYTE
_MEMORY = Path("/dev/shm")  # noqa: S108 - a room of our own in it, which only its owner may enter


class DataDirectory:
    """``$WAYBILL_DATA_DIR`` and the names in it.

    ::

        run/       processes.json, waybill.env, ports.json, up.lock
        secrets/   generated passwords, one file each (0600)
        log/       one file per server
        postgres/  rabbitmq/  redis/

    Args:
        path: Made when missing, with all its parents.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self.run = self.path / "run"
        self.secrets = self.path / "secrets"
        self.log = self.path / "log"

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that tell this directory from any other on the machine."""
        return hashlib.sha256(str(self.path).encode()).hexdigest()[:8]

    @property
    def metrics(self) -> Path:
        """Where processes add up their metrics: in memory, where that can be had.

        They do so in mapped files. A disk that is full would end each process that touches one (SIGBUS).
        """
        room = _MEMORY / f"waybill-{self.digest}"
        try:
            is_ours = room.lstat().st_uid == os.geteuid()
        except FileNotFoundError:
            is_ours = os.access(_MEMORY, os.W_OK | os.X_OK)
        return room if is_ours else self.run / "metrics"

    def prepare(self) -> None:
        """Make the rooms and see that they can be written.

        Made by root, the directory lets others pass through (0711) but not look: PostgreSQL refuses to
        run as root, and its unprivileged user must reach its own room. Everything secret is 0600 or 0700.

        Raises:
            ConfigurationError: It is not a directory, or cannot be made, read or written.
        """
        try:
            if not self.path.exists():
                self.path.mkdir(parents=True)
                self.path.chmod(0o711 if os.geteuid() == 0 else 0o700)
            for room in (self.run, self.secrets, self.log):
                room.mkdir(mode=0o700, exist_ok=True)
                if not os.access(room, os.R_OK | os.W_OK | os.X_OK):
                    raise PermissionError(13, "Permission denied", str(room))
                probe = room / f".probe-{os.getpid()}"
                probe.touch()
                probe.unlink()
        except OSError as error:
            raise ConfigurationError(
                f"the data directory {self.path} cannot be used ({error.strerror}: {error.filename}): "
                "mend its owner and mode, or set WAYBILL_DATA_DIR to a directory that you own"
            ) from error

    def empty_metrics(self) -> None:
        """Make the room for metrics, without those of an earlier start."""
        self.remove_metrics()
        self.metrics.mkdir(mode=0o700)

    def remove_metrics(self) -> None:
        """Nobody counts any more."""
        shutil.rmtree(self.metrics, ignore_errors=True)

    def require_free(self, mebibytes: int, where: Path | None = None) -> None:
        """See that the disk has room.

        Raises:
            ConfigurationError: Less than that is free.
        """
        place = where or self.path
        free = shutil.disk_usage(place).free // _MEBIBYTE
        if free < mebibytes:
            raise ConfigurationError(
                f"only {free} MiB are free at {place} and {mebibytes} MiB are needed: "
                "free some space, or set WAYBILL_DATA_DIR to a roomier disk"
            )

    def has_secret(self, name: str) -> bool:
        """Whether this secret was generated before."""
        return (self.secrets / name).is_file()

    def secret(self, name: str) -> str:
        """A generated password that outlives restarts; safe in a URL, in SQL quotes and in a file."""
        file = self.secrets / name
        try:
            return file.read_text().strip()
        except FileNotFoundError:
            value = secrets.token_urlsafe(24)
            write_private(file, value + "\n")
            return value
        except OSError as error:
            raise ConfigurationError(f"cannot read {file}: mend its owner and mode") from error

    def log_file(self, name: str) -> Path:
        """Where a server of this name writes what it has to say."""
        return self.log / f"{name}.log"

    def open_log(self, name: str) -> int:
        """A descriptor to append to; what grew beyond 16 MiB is set aside as ``.1`` first."""
        file = self.log_file(name)
        with suppress(FileNotFoundError):
            if file.stat().st_size > _LOG_LIMIT:
                file.replace(file.with_suffix(".log.1"))
        return os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def write_private(file: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)
