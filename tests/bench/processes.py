"""Child processes of a benchmark: started with a log each, stopped by pid. No knowledge of what they do."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STOP_SECONDS = 20.0


class BenchFailure(Exception):
    """The benchmark cannot go on; the text says why, in one line."""


def python(*arguments: str) -> list[str]:
    """This interpreter's command line for ``-m`` arguments."""
    return [sys.executable, "-m", *arguments]


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child: this one without any ``WAYBILL_*`` of the caller's, and ``extra``."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WAYBILL_")}
    paths = [str(ROOT), *filter(None, [inherited.get("PYTHONPATH")])]
    return inherited | {"PYTHONPATH": os.pathsep.join(paths)} | dict(extra)


def run(argv: Sequence[str], env: Mapping[str, str]) -> str:
    """Run to the end and return the standard output.

    Raises:
        BenchFailure: The exit status was not 0; carries the last lines that it wrote.
    """
    done = subprocess.run(argv, env=environment(env), cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise BenchFailure(f"{' '.join(argv[1:])} ended with {done.returncode}: {' / '.join(tail)}")
    return done.stdout


@contextmanager
def running(argv: Sequence[str], env: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process in a session of its own while the block runs, then stop it and all that it started."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            argv,
            env=environment(env),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, patience, then SIGKILL to the whole session."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):  # what it started and left behind
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_until(condition: Callable[[], bool], what: str, *, seconds: float = 60.0) -> None:
    """Poll every 50 ms until ``condition`` holds.

    Raises:
        BenchFailure: It did not within ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise BenchFailure(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.05)


def is_listening(port: int) -> bool:
    """Whether something accepts connections on this loopback port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    """A loopback port that is free now, below the ephemeral range so that no client socket takes it."""
    for port in range(21_000 + os.getpid() % 4_000, 32_000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise BenchFailure("no free loopback port below 32000")
