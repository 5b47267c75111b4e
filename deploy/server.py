"""What every server that we start has in common: the Protocol, and how one is launched, adopted, ended.

A server outlives a kill -9 of the launcher. The next start finds it by its working directory (each of
ours works in a room of its own) and by the name of its program, never by a pid file alone: pids are
reused. If it answers with our password it is adopted, else it is ended and started anew.
"""

import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import psutil

from models.errors import ConfigurationError

_POLL_SECONDS = 0.05


class Server(Protocol):
    """A server of our own, on loopback, with its data in the data directory."""

    name: str

    @property
    def url(self) -> str:
        """Where clients find it, password included."""

    @property
    def pid(self) -> int | None:
        """Its main process, None while it is down."""

    @property
    def log_file(self) -> Path:
        """Where it writes what it has to say."""

    def start(self) -> None:
        """Launch (or adopt) it and wait until it is ready."""

    def is_ready(self) -> bool:
        """Whether it answers a client now."""

    def stop(self) -> None:
        """Ask it to end, wait, and make sure."""


class LocalServer(ABC):
    """Launching, adopting and ending, the same for all three.

    Args:
        name: What it is called in logs, ports and ``processes.json``.
        workplace: Its working directory, which no other process shares; how we recognise it.
        log_file: Receives its output.
    """

    programs: frozenset[str]
    """Names of all programs that work there."""
    main_program: str
    """The one among them whose oldest process is the server."""
    stop_signal = signal.SIGTERM
    start_timeout_seconds = 60.0

    def __init__(self, name: str, workplace: Path, log_file: Path) -> None:
        self.name = name
        self._workplace = workplace
        self._log_file = log_file
        self._process: psutil.Process | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients find it, password included."""

    @property
    @abstractmethod
    def port(self) -> int:
        """The port in :attr:`url`."""

    @property
    def log_file(self) -> Path:
        """Where it writes what it has to say."""
        return self._log_file

    @property
    def pid(self) -> int | None:
        """Its main process, None while it is down."""
        return self._process.pid if self._process is not None and self.is_alive() else None

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether it answers a client now, with our password."""

    @abstractmethod
    def _spawn(self) -> psutil.Process:
        """Start the process and return at once; everything before is cleaned up."""

    def _clear_away(self) -> None:  # noqa: B027 - most leave nothing
        """Remove what a dead predecessor left, now that nothing of it runs."""

    def is_alive(self) -> bool:
        """Whether its main process runs (a zombie does not)."""
        return self._process is not None and is_running(self._process)

    def launch(self) -> None:
        """Adopt a survivor that answers, end one that does not, else start; returns before it is ready.

        Raises:
            ConfigurationError: It cannot be started; the message says how to mend it.
        """
        survivor = self._survivor()
        if survivor is not None and self._answers_within(3):
            self._process = survivor
            return
        self._process = survivor
        self.stop()
        self._clear_away()
        self._process = self._spawn()

    def wait_ready(self, is_cancelled: Callable[[], bool] = lambda: False) -> None:
        """Wait until it answers.

        Args:
            is_cancelled: Polled; when it turns true the wait ends quietly.

        Raises:
            ConfigurationError: It ended, or did not answer in time; the message quotes its log.
        """
        deadline = time.monotonic() + self.start_timeout_seconds
        while not self.is_ready():
            if is_cancelled():
                return
            if not self.is_alive():
                raise ConfigurationError(f"{self.name} ended while starting: {self._last_words()}")
            if time.monotonic() > deadline:
                limit = f"{self.start_timeout_seconds:.0f} s"
                raise ConfigurationError(f"{self.name} does not answer after {limit}: {self._last_words()}")
            time.sleep(_POLL_SECONDS)

    def start(self) -> None:
        """Launch (or adopt) it and wait until it is ready."""
        self.launch()
        self.wait_ready()

    def ask_to_stop(self) -> None:
        """Send the signal that means a clean end, and return at once."""
        if self._process is not None:
            with suppress(psutil.Error):
                self._process.send_signal(self.stop_signal)

    def kill(self) -> None:
        """End whatever of it still runs, main process and helpers, and see them gone."""
        leftovers = processes_in(self._workplace, self.programs)
        for process in leftovers:
            with suppress(psutil.Error):
                process.kill()
        for process in leftovers:
            wait_ended(process, 5)
        self._process = None

    def stop(self, grace_seconds: float = 10) -> None:
        """Ask it to end, wait, and make sure."""
        self.ask_to_stop()
        if self._process is not None:
            wait_ended(self._process, grace_seconds)
        self.kill()

    def _survivor(self) -> psutil.Process | None:
        """The main process of an earlier start that still runs."""
        found = [p for p in processes_in(self._workplace, self.programs) if _name(p) == self.main_program]
        pids = {process.pid for process in found}
        return next((process for process in found if _parent_pid(process) not in {None, *pids}), None)

    def _answers_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not self.is_ready():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def _last_words(self) -> str:
        try:
            lines = self._log_file.read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        telling = [line for line in lines[-40:] if "FATAL" in line or "rror" in line or "HINT" in line]
        words = (telling or lines[-1:] or ["it said nothing"])[-1].strip()
        return f"{words[:300]} (see {self._log_file})"


def processes_in(workplace: Path, programs: frozenset[str]) -> list[psutil.Process]:
    """The processes of these programs whose working directory is exactly this one."""
    target = str(workplace.resolve())
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.name() in programs and process.cwd() == target and is_running(process):
                found.append(process)
    return found


def is_running(process: psutil.Process) -> bool:
    """Whether this very process (not another that got its pid) still executes."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def wait_ended(process: psutil.Process, seconds: float) -> bool:
    """Wait for a process, our child or not, and reap it if it is ours.

    Returns:
        Whether it ended in time.
    """
    deadline = time.monotonic() + seconds
    while is_running(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS / 2)
    with suppress(psutil.Error):  # a threaded process is a zombie a little before it can be reaped
        process.wait(2)
    return True


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return ""


def _parent_pid(process: psutil.Process) -> int | None:
    """None where it has ended meanwhile, as sessions of a database do at any time."""
    try:
        return int(process.ppid())
    except psutil.Error:
        return None
