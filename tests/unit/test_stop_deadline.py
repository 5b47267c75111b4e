"""A process that began to stop ends in time, whatever holds it. Each is a process of its own."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

_BEGIN = """
import logging, re, signal, subprocess, sys, threading
from models import stop_deadline
from models.stop_deadline import StopDeadline
stop_deadline._SPARE_SECONDS = float(sys.argv.pop(1))
deadline = StopDeadline(0.2)
"""


def run(program: str, spare_seconds: float = 5) -> subprocess.CompletedProcess[str]:
    """Of a program that begins with a deadline of 0.2 s; it must have ended long before a minute is over."""
    return subprocess.run(
        [sys.executable, "-c", _BEGIN + program, str(spare_seconds)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_it_ends_with_its_children_and_says_so() -> None:
    began = run("""
logging.basicConfig()
silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
print(subprocess.Popen(["sleep", "600"], **silent).pid, flush=True)
deadline.begin()
threading.Event().wait()
""")
    assert began.returncode == 0
    assert "the rest is given back" in began.stderr
    assert not psutil.pid_exists(int(began.stdout))


def test_it_says_so_without_children_too() -> None:
    began = run("logging.basicConfig()\ndeadline.begin()\nthreading.Event().wait()")
    assert began.returncode == 0
    assert "the rest is given back" in began.stderr


def test_watchdog_ends_it_though_the_log_is_held() -> None:
    ended = run("""
from tasks.watchdog import Watchdog
logging.lastResort.acquire()
with Watchdog(1):
    threading.Event().wait()
""")
    assert ended.returncode == os.EX_SOFTWARE


@pytest.mark.parametrize(
    "hold",
    [
        "logging.lastResort.acquire()",
        "threading._active_limbo_lock.acquire()",
        "import psutil; psutil.Process.children = None",
    ],
    ids=["the log is held", "no thread can be made", "children cannot be told"],
)
def test_what_is_held_does_not_keep_it(hold: str) -> None:
    assert run(f"{hold}\ndeadline.begin()\nthreading.Event().wait()").returncode == 0


def test_where_no_thread_of_it_can_run_the_kernel_ends_it() -> None:
    began_at = time.monotonic()
    ended = run(
        "deadline.begin()\nre.match('(a+)+$', 'a' * 60 + 'b')", spare_seconds=1
    )  # without a pause for other threads
    assert ended.returncode == -signal.SIGALRM
    assert time.monotonic() - began_at < 50


def test_what_is_told_may_lock_what_the_handler_interrupted() -> None:
    ended = run("""
deadline = StopDeadline(60)
stopping = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: print(deadline.begin(stopping.set)))
with stopping._cond:
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
sys.exit(7 if stopping.wait(30) else 1)
""")
    assert ended.stdout.split() == ["True", "False"]
    assert ended.returncode == 7
