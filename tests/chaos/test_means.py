"""What the faults are made with does what it says: disks that fill up, clocks that jump."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import clocks
from tests.chaos.clocks import Clock
from tests.kit.disks import Disk, can_mount
from tests.kit.servers import require

_HOUR = 3600
_SHOWS_ITS_CLOCKS = """
import datetime, sys, time
from uuid_utils.compat import uuid7
for line in sys.stdin:
    made = (uuid7().int >> 80) / 1000
    now = datetime.datetime.now(datetime.UTC).timestamp()
    time.sleep(0.000001)
    print(time.time(), now, made, time.monotonic(), flush=True)
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if not can_mount():
        pytest.skip("NO TMPFS CAN BE MOUNTED HERE: no disk is filled")
    made = Disk(tmp_path / "disk")
    made.mount()
    yield made
    made.unmount()


def test_full_disk_takes_nothing_and_keeps_what_it_has(disk: Disk) -> None:
    (disk.path / "before").write_bytes(b"x" * 100_000)

    disk.fill()

    with pytest.raises(OSError, match="No space left") as refused:
        _write(disk.path / "during")
    assert refused.value.errno == errno.ENOSPC
    assert (disk.path / "before").read_bytes() == b"x" * 100_000
    disk.free()
    _write(disk.path / "after")


def test_scarce_disk_takes_so_much_and_no_more(disk: Disk) -> None:
    disk.fill(leaving=200_000)

    _write(disk.path / "first")
    with pytest.raises(OSError, match="No space left"):
        _write(disk.path / "second", 150_000)


def test_clock_jumps_while_its_process_runs_and_the_monotonic_one_goes_on(tmp_path: Path) -> None:
    require(clocks.find_means)
    library = clocks.build(tmp_path)
    assert library is not None
    clock = Clock(tmp_path / "clock", library)
    process = subprocess.Popen(
        (sys.executable, "-c", _SHOWS_ITS_CLOCKS),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **clock.environment()},
    )

    right = _shown(process)
    clock.set(3 * _HOUR)
    ahead = _shown(process)
    clock.set(-2 * _HOUR)
    behind = _shown(process)
    process.communicate(timeout=60)

    for one in range(2):
        assert ahead[one] - right[one] == pytest.approx(3 * _HOUR, abs=600)
        assert behind[one] - right[one] == pytest.approx(-2 * _HOUR, abs=600)
    assert ahead[2] - right[2] == pytest.approx(3 * _HOUR, abs=600), "what is not Python is off too"
    assert right[3] <= ahead[3] <= behind[3] < right[3] + 600


def _shown(process: subprocess.Popen[str]) -> list[float]:
    """Wall clock by two ways, time in a fresh id, monotonic clock."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("now\n")
    process.stdin.flush()
    return [float(one) for one in process.stdout.readline().split()]


def _write(file: Path, size: int = 100_000) -> None:
    file.write_bytes(b"x" * size)
