"""py-spy beside a turn of ours: one SVG flame graph and one folded-stack file per process tree."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.bench.processes import BenchFailure

SAMPLES_PER_SECOND = 200
FORMATS = {"flamegraph": "svg", "raw": "txt"}


@contextmanager
def profiled(pids: Mapping[str, int], directory: Path, label: str) -> Iterator[None]:
    """Sample every process in ``pids`` with its children while the block runs.

    Writes ``<label>-<process>.svg`` and ``.txt`` into ``directory``. The turn is slower for it: its
    figure is not part of the report. ptrace rights are needed (root, or ``kernel.yama.ptrace_scope=0``).
    """
    directory.mkdir(parents=True, exist_ok=True)
    recorders = [
        _record(pid, directory / f"{label}-{name}.{suffix}", form)
        for name, pid in pids.items()
        for form, suffix in FORMATS.items()
    ]
    time.sleep(0.5)
    if any(recorder.poll() for recorder in recorders):
        raise BenchFailure("py-spy cannot attach: run as root, or set kernel.yama.ptrace_scope=0")
    try:
        yield
    finally:
        for recorder in recorders:
            recorder.send_signal(signal.SIGINT)
        for recorder in recorders:
            recorder.wait(60)


def _record(pid: int, output: Path, form: str) -> subprocess.Popen[bytes]:
    # Not blocking: two recorders may look at one process, and neither stops it to look.
    argv = [_py_spy(), "record", "--pid", str(pid), "--subprocesses", "--nonblocking", "--format", form]
    argv += ["--rate", str(SAMPLES_PER_SECOND), "--duration", "unlimited", "--output", str(output)]
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _py_spy() -> str:
    """The program beside this interpreter, else the one on the path."""
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    if program is None:
        raise BenchFailure("py-spy is missing: install the development dependencies")
    return program
