"""Keeps the platform's processes running, says who is who, ends them in order. Knows no settings."""

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from deploy.data_directory import write_private
from models.errors import WaybillError

KINDS = ("api", "worker", "consumer", "flower", "postgres", "rabbitmq", "redis")
"""The lists of ``processes.json``, whatever runs."""

_log = logging.getLogger("waybill.deploy.supervisor")
_POLL_SECONDS = 0.1


class Supervised(Protocol):
    """Something that runs as a process: a child of ours, or a server that we may have adopted."""

    name: str

    @property
    def pid(self) -> int | None:
        """Its main process, None while it is down."""

    def launch(self) -> None:
        """Start it; return before it is ready."""

    def is_alive(self) -> bool:
        """Whether it runs."""

    def ask_to_stop(self) -> None:
        """Ask for a clean end; return at once."""

    def kill(self) -> None:
        """End whatever of it still runs, and see it gone."""


class Entry:
    """One supervised thing and its restart clock.

    Args:
        process: What is supervised.
        kinds: The lists of ``processes.json`` in which it stands.
        longest_delay_seconds: Before a restart.
    """

    FIRST_DELAY_SECONDS = 0.2
    LONGEST_DELAY_SECONDS = 3.0
    STEADY_AFTER_SECONDS = 20.0

    def __init__(
        self,
        process: Supervised,
        kinds: Sequence[str],
        longest_delay_seconds: float = LONGEST_DELAY_SECONDS,
    ) -> None:
        self._longest_delay = longest_delay_seconds
        self.process = process
        self.kinds = tuple(kinds)
        self.is_up = False
        self.restart_at: float | None = None
        self._launched_at = 0.0
        self._delay = self.FIRST_DELAY_SECONDS

    def note_launch(self, now: float) -> None:
        """It was started."""
        self.is_up, self.restart_at, self._launched_at = True, None, now

    def note_end(self, now: float) -> None:
        """It ended by itself: restart soon, a little later each time it ends young, never after 5 s."""
        if now - self._launched_at >= self.STEADY_AFTER_SECONDS:
            self._delay = self.FIRST_DELAY_SECONDS
        self.is_up, self.restart_at = False, now + self._delay
        self._delay = min(self._delay * 2, self._longest_delay)


class Supervisor:
    """Starts, restarts and stops; one thread, no surprises.

    Args:
        processes_file: ``processes.json``, rewritten whole at every start and restart.
        clock: Monotonic seconds.
        longest_delay_seconds: Before a restart of what ends young again and again.
    """

    def __init__(
        self,
        processes_file: Path,
        clock: Callable[[], float] = time.monotonic,
        *,
        longest_delay_seconds: float = Entry.LONGEST_DELAY_SECONDS,
    ) -> None:
        self._file = processes_file
        self._clock = clock
        self._longest_delay = longest_delay_seconds
        self._entries: list[Entry] = []
        self._is_told = True

    @property
    def is_busy(self) -> bool:
        """Whether anything was started and not yet stopped."""
        return bool(self._entries)

    def add(self, process: Supervised, kinds: Sequence[str]) -> None:
        """Launch something and watch over it from now on.

        Raises:
            ConfigurationError: It cannot be started at all.
        """
        entry = Entry(process, kinds, self._longest_delay)
        self._entries.append(entry)  # first: what is half-started must be stopped too
        process.launch()
        entry.note_launch(self._clock())
        self.write_processes()

    def check(self) -> list[Supervised]:
        """Look at all once: note who ended, restart who is due.

        Returns:
            Who ended since the last look.
        """
        now, ended = self._clock(), []
        for entry in self._entries:
            if entry.is_up and not entry.process.is_alive():
                entry.note_end(now)
                ended.append(entry.process)
                self._is_told = False
                _log.warning("process ended", extra={"part": entry.process.name})
            if entry.restart_at is not None and now >= entry.restart_at and self._restart(entry):
                self._is_told = False
        if not self._is_told:
            self._tell()
        return ended

    def watch(self, must_stop: Callable[[], bool]) -> None:
        """Keep everything running until told to stop."""
        while not must_stop():
            self.check()
            time.sleep(_POLL_SECONDS)

    def stop(self, phases: Sequence[tuple[Sequence[str], float]]) -> None:
        """End everything, phase after phase; what does not end in its time is killed.

        Args:
            phases: Kinds that end together, and the seconds that they get. What is of several kinds
                ends with the last of them; what no phase names ends last.
        """
        remaining = list(self._entries)
        for place, (kinds, grace_seconds) in enumerate([*phases, (KINDS, 5.0)]):
            later = {kind for others, _ in phases[place + 1 :] for kind in others}
            leaving = [one for one in remaining if set(one.kinds) & set(kinds) and not set(one.kinds) & later]
            remaining = [entry for entry in remaining if entry not in leaving]
            self._stop_together(leaving, grace_seconds)
        self._entries.clear()
        self._file.unlink(missing_ok=True)

    def write_processes(self) -> None:
        """Say who is who: ``up`` is this process, the rest are lists of pids, empty where nothing runs."""
        pids: dict[str, int | list[int]] = {"up": os.getpid(), **{kind: [] for kind in KINDS}}
        for entry in self._entries:
            pid = entry.process.pid
            for kind in entry.kinds:
                listed = pids[kind]
                if pid is not None and isinstance(listed, list):
                    listed.append(pid)
        write_private(self._file, json.dumps(pids) + "\n")

    def _tell(self) -> None:
        """Write who is who; where the disk is full, at the next look."""
        try:
            self.write_processes()
        except OSError as error:
            _log.debug("cannot say who is who", extra={"reason": str(error)})
        else:
            self._is_told = True

    def _restart(self, entry: Entry) -> bool:
        now = self._clock()
        try:
            entry.process.launch()
        except (WaybillError, OSError) as error:
            _log.error("cannot restart", extra={"part": entry.process.name, "reason": str(error)})
            entry.note_end(now)
            return False
        entry.note_launch(now)
        _log.info("process restarted", extra={"part": entry.process.name, "pid": entry.process.pid})
        return True

    def _stop_together(self, entries: Sequence[Entry], grace_seconds: float) -> None:
        for entry in entries:
            entry.process.ask_to_stop()
        deadline = self._clock() + grace_seconds
        while any(entry.process.is_alive() for entry in entries) and self._clock() < deadline:
            time.sleep(_POLL_SECONDS / 4)
        for entry in entries:
            if entry.process.is_alive():
                _log.warning("killed after its time to stop", extra={"part": entry.process.name})
            entry.process.kill()
