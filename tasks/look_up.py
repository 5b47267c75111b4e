"""Asking for the addresses of a host's name, for so long at most."""

from collections.abc import Callable
from threading import Thread
from typing import TypeVar

_Found = TypeVar("_Found")


def look_up(ask: Callable[[], _Found], timeout_seconds: float) -> _Found:
    """What ``ask`` returns or raises, asked on a thread of its own: getaddrinfo knows no time-out.

    One that is too slow is left behind.

    Raises:
        TimeoutError: Time was up.
    """
    outcome: list[_Found | Exception] = []

    def work() -> None:
        try:
            outcome.append(ask())
        except Exception as error:  # whatever it is, it is raised again below
            outcome.append(error)

    thread = Thread(target=work, name="look-up", daemon=True)
    thread.start()
    thread.join(timeout_seconds)
    if not outcome:
        raise TimeoutError
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]
