"""What to do about a failed attempt: one pure decision. No storage, no clock, no sleep."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from models.errors import Refusal, Transient

_MAX_DOUBLINGS = 64


@dataclass(frozen=True, slots=True)
class Fail:
    """Final: a business outcome."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Again, after ``delay``."""

    delay: timedelta


@dataclass(frozen=True, slots=True)
class Die:
    """Attempts are exhausted, or the fault is of a kind that does not pass."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential back-off with full jitter (Brooker, "Exponential Backoff And Jitter", AWS 2015).

    Attributes:
        max_attempts: After so many the job is dead.
        base: The first back-off's upper bound; it doubles with each attempt.
        cap: No back-off is longer.
    """

    max_attempts: int = 8
    base: timedelta = timedelta(seconds=1)
    cap: timedelta = timedelta(minutes=5)

    def decide(
        self, error: Exception, attempt: int, *, uniform: Callable[[float, float], float] = random.uniform
    ) -> Fail | Retry | Die:
        """Decide on the attempt number ``attempt`` (the first is 1), which ended in ``error``.

        Business outcomes fail at once. Transient and unknown faults are tried again, as an
        unknown one may pass too; what does not pass in ``max_attempts`` is dead.
        """
        if isinstance(error, Refusal):
            return Fail()
        if attempt >= self.max_attempts:
            return Die()
        doublings = min(attempt - 1, _MAX_DOUBLINGS)
        ceiling = min(self.cap.total_seconds(), self.base.total_seconds() * 2**doublings)
        floor = ceiling / 10 if isinstance(error, Transient) else ceiling / 2
        return Retry(timedelta(seconds=uniform(floor, ceiling)))
