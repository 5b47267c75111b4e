"""Waiting for something to become true. The only place in the tests that sleeps."""

import time
from collections.abc import Callable
from typing import TypeVar

_Value = TypeVar("_Value")


def wait_until(
    condition: Callable[[], _Value],
    *,
    timeout_seconds: float = 15,
    every_seconds: float = 0.02,
    what: str = "",
) -> _Value:
    """Poll until the condition returns something true, and return that.

    Args:
        condition: Polled; an exception that it raises ends the wait.
        timeout_seconds: How long to poll.
        every_seconds: Pause between two polls.
        what: Named in the failure; defaults to the condition's name.

    Raises:
        AssertionError: It did not become true in time.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            name = what or getattr(condition, "__name__", repr(condition))
            raise AssertionError(f"not true within {timeout_seconds} s: {name}")
        time.sleep(every_seconds)
