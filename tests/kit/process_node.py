"""Processes of this machine in the place of pytest-celery's containers: its nodes take them as they are.

A node asks of its container for ``id``, ``name``, ``status``, ``logs``, ``kill``, ``reload``, ``restart``,
``ready``, ``teardown``, ``exec_run`` and ``celeryconfig``. Where Docker exists pytest-celery's own do that.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from deploy.server import LocalServer, is_running
from tests.kit.waiting import wait_until


class ServerContainer:
    """A server that our own launcher starts, as a container.

    Args:
        server: Started when it is first asked whether it is ready.
    """

    def __init__(self, server: LocalServer) -> None:
        self._server = server
        self.id = self.name = server.name

    @property
    def status(self) -> str:
        """``running`` or ``exited``, as Docker says."""
        return "running" if self._server.is_alive() else "exited"

    @property
    def celeryconfig(self) -> dict[str, str]:
        """Where clients find it."""
        return {"url": self._server.url, "host_url": self._server.url}

    def ready(self) -> bool:
        """Whether it answers; starts it where it does not run."""
        if not self._server.is_alive():
            self._server.start()
        return self._server.is_ready()

    def logs(self) -> str:
        """All that it wrote."""
        return self._server.log_file.read_text(errors="replace")

    def kill(self, signal: str = "SIGKILL") -> None:
        """End it the hard way, whatever the signal."""
        self._server.kill()

    def reload(self) -> None:
        """Its facts are always read afresh."""

    def restart(self, timeout: float = 60) -> None:
        """Stop it if it runs, and start it on its data."""
        self._server.stop()
        self._server.start()

    def exec_run(self, command: str) -> tuple[int, bytes]:
        """Run a command beside it: exit status and output."""
        return _run(command)

    def teardown(self) -> None:
        """Stop it."""
        self._server.stop()


class WorkerContainer:
    """A command that runs a Celery worker, as a container.

    Args:
        name: Its own.
        command: Program and arguments.
        environment: The whole of it.
        folder: Where it runs and its log is kept.
        is_ready: Told its log: whether it has begun to work.
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        environment: Mapping[str, str],
        folder: Path,
        is_ready: Callable[[str], bool],
    ) -> None:
        self.id = self.name = name
        self._command = command
        self._environment = dict(environment)
        self._folder = folder
        self._log = folder / f"{name}.log"
        self._is_ready = is_ready
        self._process: psutil.Popen | None = None

    @property
    def process(self) -> psutil.Popen:
        """The worker's main process, alive or dead."""
        assert self._process is not None, "it was never ready"
        return self._process

    def _start(self) -> None:
        with self._log.open("a") as stream:
            self._process = psutil.Popen(
                self._command,
                env=self._environment,
                cwd=self._folder,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )

    @property
    def status(self) -> str:
        """``running`` or ``exited``, as Docker says."""
        return "running" if self._process is not None and is_running(self._process) else "exited"

    @property
    def celeryconfig(self) -> dict[str, Any]:
        """A worker gives no URL to anybody."""
        return {}

    def worker_name(self) -> str:
        """First half of its node name."""
        return self.name

    def ready(self) -> bool:
        """Wait until it works; starts it where it does not run."""
        if self.status != "running":
            self._start()
        wait_until(lambda: self._is_ready(self.logs()), timeout_seconds=60, what=f"{self.name} is ready")
        return True

    def logs(self) -> str:
        """All that it wrote, over all its lives."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def kill(self, signal: str | int = "SIGKILL") -> None:
        """Send a signal. SIGKILL ends the children too, as the end of a container would."""
        number = _number(signal)
        children = self.process.children(recursive=True) if number == _KILL else ()
        for one in (self.process, *children):
            if is_running(one):
                one.send_signal(number)
        if number == _KILL:
            self.process.wait(20)

    def reload(self) -> None:
        """Its facts are always read afresh."""

    def restart(self, timeout: float = 60) -> None:
        """Wait for its end, or end it, and start it anew."""
        if self._process is not None:
            try:
                self._process.wait(timeout)
            except psutil.TimeoutExpired:
                self.kill()
        self._log.unlink(missing_ok=True)
        self.ready()

    def exec_run(self, command: str) -> tuple[int, bytes]:
        """Run a command beside it: exit status and output."""
        return _run(command)

    def teardown(self) -> None:
        """End it and all that it started."""
        if self.status == "running":
            self.kill()


_KILL = signal.SIGKILL


def _number(name: str | int) -> int:
    return int(signal.Signals[name] if isinstance(name, str) else name)


def _run(command: str) -> tuple[int, bytes]:
    done = subprocess.run(  # noqa: S602 - what a test says
        command, shell=True, capture_output=True, check=False, timeout=60
    )
    return done.returncode, done.stdout + done.stderr


def worker_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This environment without the caller's ``WAYBILL_*``, and ``settings``."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WAYBILL_")}
    return {**inherited, "PYTHONPATH": str(Path(__file__).parents[2]), **settings}


def python(*arguments: str) -> list[str]:
    """This interpreter's command line."""
    return [sys.executable, *arguments]
