"""Wall clocks that can be set, one for each of the platform's processes: ``clock.c``, loaded before all else.

Why not ``libfaketime``: with it Python's short sleeps raise EINVAL, and its locks are not made for forks.
Servers (PostgreSQL, RabbitMQ, Redis) keep the right time.
"""

import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

from models.errors import ConfigurationError

_SOURCE = Path(__file__).with_name("clock.c")
_COMPILERS = ("cc", "gcc", "tcc", "clang")
_TRIED_OFFSET = 86_400


class Clock:
    """The wall clock of one process and its children.

    Args:
        file: Of its own; made at once.
        library: What :func:`build` made.
    """

    def __init__(self, file: Path, library: Path) -> None:
        self._file = file
        self._library = library
        file.write_bytes(bytes(8))

    def set(self, seconds: int) -> None:
        """Be off by so much from this moment on: ahead, or behind where it is negative."""
        with self._file.open("r+b") as stream:
            stream.write(struct.pack("q", seconds))

    def environment(self) -> Mapping[str, str]:
        """For its process."""
        return {"LD_PRELOAD": str(self._library), "WAYBILL_CHAOS_CLOCK": str(self._file)}


def build(folder: Path) -> Path | None:
    """Make the library in ``folder``; None where that cannot be done here."""
    library = folder / "clock.so"
    for compiler in filter(shutil.which, _COMPILERS):
        command = (compiler, "-shared", "-fPIC", "-nostdlib", "-o", str(library), str(_SOURCE))
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run(command, check=True, capture_output=True, timeout=60)
            return library
    return None


def find_means() -> None:
    """See that it works.

    Raises:
        ConfigurationError: It does not; the message says what may be missing.
    """
    if not can_be_set():
        raise ConfigurationError("clocks cannot be set: install a C compiler (apt-get install tcc), on Linux")


@cache
def can_be_set() -> bool:
    """Whether it works on this machine: tried."""
    with tempfile.TemporaryDirectory(prefix="waybill-clock-") as folder:
        library = build(Path(folder))
        if library is None:
            return False
        clock = Clock(Path(folder) / "clock", library)
        clock.set(_TRIED_OFFSET)
        shown = subprocess.run(
            (sys.executable, "-c", "import time; print(time.time())"),
            env={**os.environ, **clock.environment()},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    return shown.returncode == 0 and float(shown.stdout) > time.time() + _TRIED_OFFSET / 2
