"""``waybill up`` as a process of its own: whole, or with stand-ins for its children. Real servers."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from deploy.data_directory import DataDirectory
from deploy.ports import free_port
from tests.kit.waiting import wait_until

_CHECKOUT = Path(__file__).parents[2]
MOST_SECONDS_TO_STOP = 40
"""Twice of what the README promises for a stop: the machine may be busy."""
_SCRIPT = """
import sys
from deploy import children
from deploy.child import ChildSpec
status = sys.argv.pop(1)
fake = (sys.executable, "-m", "tests.kit.fake_node") + ((status,) if status else ())
wait = "import signal; from deploy.parent import die_with_launcher; die_with_launcher(); signal.pause()"
children.EMBEDDED = (ChildSpec("node", ("api", "worker", "flower"), fake),)
children.FULL = (
    ChildSpec("api", ("api",), fake),
    *(ChildSpec(kind, (kind,), (sys.executable, "-c", wait)) for kind in ("worker", "consumer", "flower")),
)
from deploy.cli import main
main(sys.argv[1:])
"""


class Launched:
    """A running ``waybill up``.

    Args:
        directory: Its data directory.
        command: Program and arguments.
        settings: Environment variables.
        output: Where it writes; None: to a file in its directory.
    """

    def __init__(
        self,
        directory: DataDirectory,
        command: Sequence[str],
        settings: Mapping[str, str],
        output: Path | None = None,
    ) -> None:
        self.directory = directory
        self.api_port, self.flower_port = free_port(), free_port()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("WAYBILL_")}
        self.environment = inherited | {
            "WAYBILL_DATA_DIR": str(directory.path),
            "WAYBILL_API_PORT": str(self.api_port),
            "WAYBILL_FLOWER_PORT": str(self.flower_port),
            "WAYBILL_RATE_LIMITS": "off",
            **settings,
        }
        self.output = output or directory.path / f"up-{self.api_port}.out"
        with self.output.open("w") as stream:
            self.process = subprocess.Popen(
                command,
                env=self.environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=_CHECKOUT,
            )

    def said(self) -> str:
        """All of its output so far; none where that is no file."""
        return self.output.read_text() if self.output.is_file() else ""

    def processes(self) -> dict[str, Any]:
        """Who is who, as it says; empty before it does."""
        try:
            document: dict[str, Any] = json.loads((self.directory.run / "processes.json").read_text())
        except (OSError, ValueError):
            return {}
        return document if document.get("up") == self.process.pid else {}

    def wait_ready(self) -> None:
        """Wait for the line that says so."""
        wait_until(lambda: "Ready." in self.said() or self.process.poll() is not None, timeout_seconds=90)
        assert self.process.poll() is None, self.said()

    def wait_exit(self, timeout_seconds: float = 90) -> int:
        """Wait for its end; its exit status."""
        return self.process.wait(timeout_seconds)

    def stop(self) -> int:
        """SIGTERM, and its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait_exit(MOST_SECONDS_TO_STOP)

    def kill(self) -> None:
        """End the launcher alone, as kill -9 does."""
        self.process.kill()
        self.process.wait()


@contextmanager
def launched(
    directory: DataDirectory,
    *arguments: str,
    status: str = "",
    output: Path | None = None,
    **settings: str,
) -> Iterator[Launched]:
    """Start ``waybill up``; at the end nothing of it is left, whatever happened.

    Args:
        directory: Its data directory.
        *arguments: Options of ``up``.
        status: Exit status with which the stand-in for the node ends at once; empty: it serves.
        output: Where it writes; None: to a file in its directory.
        **settings: Environment variables.
    """
    command = [sys.executable, "-c", _SCRIPT, status, "up", *arguments]
    with _running(directory, command, settings, output=output) as up:
        yield up


@contextmanager
def launched_whole(
    directory: DataDirectory, *arguments: str, is_quiet: bool = False, **settings: str
) -> Iterator[Launched]:
    """Start ``waybill up`` as users do; at the end nothing of it is left, whatever happened.

    Args:
        directory: Its data directory.
        *arguments: Options of ``up``.
        is_quiet: Do not show at the end what it said.
        **settings: Environment variables.
    """
    command = [sys.executable, "-P", "-m", "deploy.cli", "up", *arguments]
    environment = {"PYTHONPATH": str(_CHECKOUT), **settings}
    with _running(directory, command, environment, is_quiet=is_quiet) as up:
        yield up


@contextmanager
def _running(
    directory: DataDirectory,
    command: Sequence[str],
    settings: Mapping[str, str],
    *,
    is_quiet: bool = False,
    output: Path | None = None,
) -> Iterator[Launched]:
    up = Launched(directory, command, settings, output)
    try:
        yield up
    finally:
        if up.process.poll() is None:
            up.process.terminate()
            try:
                up.process.wait(25)
            except subprocess.TimeoutExpired:
                up.kill()
        if not is_quiet:
            sys.stdout.write(up.said())  # pytest shows it when the test fails


def ended(pid: int) -> bool:
    """Whether this process is gone (a zombie is)."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
