"""Servers that are frozen (SIGSTOP): they keep every connection, take new ones, and say nothing."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil


def freeze(pid: int) -> list[psutil.Process]:
    """Freeze a process and its descendants, the parent first, so that it makes no more of them."""
    parent = psutil.Process(pid)
    parent.suspend()
    family = [parent, *parent.children(recursive=True)]
    for process in family[1:]:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    return family


def thaw(family: list[psutil.Process]) -> None:
    """Let them go on."""
    for process in reversed(family):
        with suppress(psutil.NoSuchProcess):
            process.resume()


@contextmanager
def frozen(pid: int | None) -> Iterator[None]:
    """A process frozen with its descendants for the length of a block."""
    assert pid is not None, "it does not run"
    family = freeze(pid)
    try:
        yield
    finally:
        thaw(family)
