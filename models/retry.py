"""What to do about a failed attempt: one pure decision. No storage, no clock, no chance, no sleep."""

from dataclasses import dataclass
from datetime import timedelta

from models.errors import ConfigurationError, Permanent, Refusal, Transient

_MAX_DOUBLINGS = 64
_LONGEST_REST = timedelta(days=1)
_MOST_ATTEMPTS = 100


@dataclass(frozen=True, slots=True)
class Fail:
    """Final: a business outcome."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Again, at a moment ``within`` that time: full jitter (:meth:`delay`)."""

    within: timedelta

    def delay(self, chance: float) -> timedelta:
        """The rest, for a ``chance`` drawn evenly from 0 to 1."""
        return self.within * chance


@dataclass(frozen=True, slots=True)
class Die:
    """Attempts are exhausted, or the fault is of a kind that does not pass."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential back-off with full jitter (Brooker, "Exponential Backoff And Jitter", AWS 2015).

    A resource may declare its own, see :class:`models.resource_type.ResourceType`.

    Attributes:
        max_attempts: After so many, 1 to 100, the job is dead.
        base: The first back-off's upper bound; it doubles with each attempt.
        cap: No back-off is longer; at most a day, for the job holds its lane meanwhile.

    Raises:
        ConfigurationError: A value is out of range.
    """

    max_attempts: int = 8
    base: timedelta = timedelta(seconds=1)
    cap: timedelta = timedelta(minutes=5)

    def __post_init__(self) -> None:
        if not 1 <= self.max_attempts <= _MOST_ATTEMPTS:
            raise ConfigurationError(f"retry policy: max_attempts must be from 1 to {_MOST_ATTEMPTS}")
        if self.base < timedelta(0) or not timedelta(0) <= self.cap <= _LONGEST_REST:
            raise ConfigurationError("retry policy: base and cap must not be negative, nor cap over a day")

    def decide(self, error: Exception, attempt: int) -> Fail | Retry | Die:
        """Decide on the attempt number ``attempt`` (the first is 1), which ended in ``error``.

        Business outcomes fail at once, permanent faults are dead at once. Transient and unknown faults
        are tried again, as an unknown one may pass too; what does not pass in ``max_attempts`` is dead.
        """
        if isinstance(error, Refusal):
            return Fail()
        if isinstance(error, Permanent) or attempt >= self.max_attempts:
            return Die()
        doublings = min(attempt - 1, _MAX_DOUBLINGS)
        seconds = min(self.cap.total_seconds(), self.base.total_seconds() * 2**doublings)
        return Retry(timedelta(seconds=seconds))


def reason_of(error: Exception) -> str:
    """A failed attempt in a few words for the job's own history: nothing of an unknown fault but its kind."""
    if isinstance(error, Refusal):
        return f"{error.code}: {error.message}"
    kind = type(error).__name__
    return f"{kind}: {error}" if isinstance(error, Transient) else kind
