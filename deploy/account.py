"""Who a server runs as: ourselves, or an unprivileged user that exists already. Makes no users."""

import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from models.errors import ConfigurationError

_UNPRIVILEGED = "nobody"


@dataclass(frozen=True, slots=True)
class Account:
    """A user to run as. ``uid`` is None when it is ourselves and nothing needs dropping."""

    uid: int | None = None
    gid: int | None = None

    @classmethod
    def unprivileged(cls) -> Self:
        """Ourselves, or ``nobody`` when we are root."""
        if os.geteuid() != 0:
            return cls()
        try:
            entry = pwd.getpwnam(_UNPRIVILEGED)
        except KeyError as error:
            raise ConfigurationError(
                f"PostgreSQL refuses to run as root and there is no user {_UNPRIVILEGED} to run it as: "
                "start as an ordinary user, or set WAYBILL_DATABASE_URL"
            ) from error
        return cls(entry.pw_uid, entry.pw_gid)

    @classmethod
    def owner_of(cls, path: Path) -> Self:
        """Whoever owns this file, so that a second start runs as the first did.

        Raises:
            ConfigurationError: It is neither ours nor may we become its owner.
        """
        status = path.stat()
        if status.st_uid == os.geteuid() != 0:
            return cls()
        if os.geteuid() != 0 or status.st_uid == 0:
            raise ConfigurationError(
                f"{path} belongs to user {status.st_uid}, which cannot run PostgreSQL here: start as its "
                "owner, change its owner, or set WAYBILL_DATA_DIR to another directory"
            )
        return cls(status.st_uid, status.st_gid)

    @property
    def extra_groups(self) -> list[int] | None:
        """No further groups when privileges are dropped; unchanged otherwise."""
        return None if self.uid is None else []

    def own(self, path: Path) -> None:
        """Hand a file or directory over to this account."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)

    def run(
        self, *command: str | Path, stdin: str = "", cwd: Path | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run a short command as this account, its output captured, its secrets on standard input.

        Raises:
            OSError: It cannot be executed.
        """
        return subprocess.run(
            [str(part) for part in command],
            input=stdin,
            text=True,
            errors="replace",
            capture_output=True,
            check=False,
            cwd=cwd or "/",
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            user=self.uid,
            group=self.gid,
            extra_groups=self.extra_groups,
            umask=0o077,
        )

    def can_run(self, program: Path) -> bool:
        """Whether this account reaches a program and what it is linked with."""
        try:
            return self.run(program, "--version").returncode == 0
        except (OSError, subprocess.SubprocessError):
            return False

    def can_write(self, directory: Path) -> bool:
        """Whether this account reaches a directory and may write in it."""
        try:
            return self.run("/bin/sh", "-c", 'test -w "$0" && cd "$0"', directory).returncode == 0
        except (OSError, subprocess.SubprocessError):
            return False
