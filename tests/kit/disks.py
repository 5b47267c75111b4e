"""Small disks for tests: each a tmpfs, which is full once it is shrunk to what it holds.

A shrunk disk refuses what a full one refuses (ENOSPC), costs no memory, and is emptied at once. Mounting
needs root; where it is not to be had no server gets one, and the faults that fill them are left out.
"""

import os
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

_ROOMY = 8 * 1024**3
"""Takes memory only as it is written to."""


class Disk:
    """A file system of its own at a directory.

    Args:
        path: Where; made when missing.
        owner: User and group that write there.
    """

    def __init__(self, path: Path, owner: tuple[int, int] | None = None) -> None:
        self.path = path
        self._owner = owner

    def mount(self) -> None:
        """Begin, roomy."""
        self.path.mkdir(parents=True, exist_ok=True)
        _run("mount", "-t", "tmpfs", "-o", f"size={_ROOMY},mode=0700", "waybill-chaos", str(self.path))
        if self._owner is not None:
            os.chown(self.path, *self._owner)

    def fill(self, *, leaving: int = 0) -> None:
        """From now on there is no room, but for so many bytes."""
        for _ in range(50):
            state = os.statvfs(self.path)
            used = (state.f_blocks - state.f_bfree) * state.f_frsize
            try:
                return self._resize(used + leaving)
            except subprocess.CalledProcessError:  # something was written in between
                continue
        raise RuntimeError(f"{self.path} cannot be filled: too much is written there")

    def free(self) -> None:
        """There is room again."""
        self._resize(_ROOMY)

    def unmount(self) -> None:
        """End, with all that is there."""
        with suppress(subprocess.CalledProcessError):
            _run("umount", "--lazy", str(self.path))

    def _resize(self, size: int) -> None:
        _run("mount", "-o", f"remount,size={size}", str(self.path))


@cache
def can_mount() -> bool:
    """Whether this process may mount at all: tried, for a container's root often may not."""
    if os.geteuid() != 0:
        return False
    with tempfile.TemporaryDirectory(prefix="waybill-disk-") as place:
        disk = Disk(Path(place) / "tried")
        try:
            disk.mount()
            disk.fill()
        except (OSError, subprocess.CalledProcessError):
            return False
        finally:
            disk.unmount()
    return True


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=30)
