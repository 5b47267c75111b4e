"""One process of our own under the launcher: started, watched, ended. When to restart: ``supervisor.py``."""

import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import psutil

from deploy.parent import LAUNCHER_PID
from deploy.server import is_running, wait_ended

CONFIGURATION_EXIT_STATUS = 2


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to run.

    Attributes:
        name: For logs; unique.
        kinds: The lists of ``processes.json`` in which its pid stands.
        command: Program and arguments.
    """

    name: str
    kinds: tuple[str, ...]
    command: tuple[str, ...]


class Child:
    """A process in a group of its own that writes to the launcher's output as it is.

    Args:
        spec: What to run.
        environment: All of its environment variables.
    """

    def __init__(self, spec: ChildSpec, environment: Mapping[str, str]) -> None:
        self.name = spec.name
        self.kinds = spec.kinds
        self._command = spec.command
        self._environment = environment
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Its pid, None while it is down."""
        return self._popen.pid if self._popen is not None and self.is_alive() else None

    @property
    def exit_status(self) -> int | None:
        """How it ended; negative is a signal. None while it runs or before it was started."""
        return self._popen.poll() if self._popen is not None else None

    def launch(self) -> None:
        """Start it, after ending what its predecessor may have left in its process group."""
        self._end_group()
        self._popen = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            env={**self._environment, LAUNCHER_PID: str(os.getpid())},
            start_new_session=True,  # Ctrl-C on the terminal reaches the launcher alone
        )

    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self._popen is not None and self._popen.poll() is None

    def ask_to_stop(self) -> None:
        """SIGTERM: finish what is begun and end."""
        if self._popen is not None and self._popen.poll() is None:
            self._popen.terminate()

    def kill(self) -> None:
        """End it and all that is left of its process group."""
        self._end_group()

    def _end_group(self) -> None:
        if self._popen is None:
            return
        members = _group(self._popen.pid)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        for member in members:
            wait_ended(member, 3)
        self._popen.wait()


def _group(group: int) -> list[psutil.Process]:
    members = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if os.getpgid(process.pid) == group and is_running(process):
                members.append(process)
    return members
