"""What follows from a receiver's answer: a pure function decides. No clock, no storage, no network.

::

    2xx                              ──▶ Delivered
    410                              ──▶ DisableEndpoint
    the URL itself breaks the rules  ──▶ GiveUp
    anything else, or no answer      ──▶ RetryIn, until the attempts or the days are used up: GiveUp
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

SCHEDULE = (
    timedelta(seconds=5),
    timedelta(seconds=30),
    timedelta(minutes=2),
    timedelta(minutes=10),
    timedelta(minutes=30),
    timedelta(hours=1),
    timedelta(hours=2),
    timedelta(hours=4),
    timedelta(hours=8),
    timedelta(hours=12),
    timedelta(hours=12),
    timedelta(hours=16),
    timedelta(hours=16),
)
"""The rest after the first failed attempt, after the second, …: 14 attempts within 71.7 hours."""

MAX_ATTEMPTS = len(SCHEDULE) + 1
MAX_AGE = timedelta(days=3)
"""An attempt that fails at this age was the last one, however few there were (parked, or told to wait)."""

MAX_RETRY_AFTER = timedelta(hours=24)
JITTER = 0.2
"""Each rest is stretched or shortened by up to this share, so that what failed together comes back apart."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one attempt to send brought.

    Attributes:
        status: The receiver's HTTP status; None where there was none.
        error: One line for the endpoint's owner; None for 2xx.
        retry_after: What the receiver asked for, zero to a day.
        is_refused: The URL itself breaks the rules: nothing was sent, and no retry can mend it.
    """

    status: int | None
    error: str | None = None
    retry_after: timedelta | None = None
    is_refused: bool = False

    @property
    def is_delivered(self) -> bool:
        """Whether the receiver took it (2xx)."""
        return self.status is not None and 200 <= self.status <= 299

    @property
    def blames_host(self) -> bool:
        """Whether this speaks against the host as a whole, and so counts for its breaker.

        No answer, 5xx and 429 do. Any other status comes from a host that works, even if it says no.
        """
        if self.status is None:
            return not self.is_refused
        return self.status >= 500 or self.status == 429


@dataclass(frozen=True, slots=True)
class Delivered:
    """Done."""


@dataclass(frozen=True, slots=True)
class RetryIn:
    """Try again after ``delay``."""

    delay: timedelta


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Failed for good; ``reason`` is one line for the endpoint's owner.

    Attributes:
        is_ours: The receiver had no part in it.
    """

    reason: str
    is_ours: bool = False


@dataclass(frozen=True, slots=True)
class DisableEndpoint:
    """Failed for good, and the receiver asks for nothing more, ever (410): the endpoint is disabled."""

    reason: str


Decision = Delivered | RetryIn | GiveUp | DisableEndpoint


def decide(answer: Answer, *, attempts: int, age: timedelta, random: Callable[[], float]) -> Decision:
    """What becomes of a delivery after an attempt.

    Args:
        answer: What the attempt brought.
        attempts: How many were made, this one included: at least 1.
        age: How long ago the delivery was created.
        random: A number in [0, 1), for the jitter.

    Returns:
        A retry rests at least as long as the receiver asked (``Retry-After``, at most a day) and otherwise as
        ``SCHEDULE`` says, give or take ``JITTER``. So the last attempt begins no later than 4 days in.
    """
    if answer.is_delivered:
        return Delivered()
    error = answer.error or f"answered {answer.status}"
    if answer.status == 410:
        return DisableEndpoint(error)
    if answer.is_refused:
        return GiveUp(error)
    if attempts >= MAX_ATTEMPTS or age >= MAX_AGE:
        return GiveUp(f"given up after {attempts} attempts; the last one: {error}")
    rest = SCHEDULE[max(attempts, 1) - 1] * (1 + JITTER * (2 * random() - 1))
    return RetryIn(max(rest, min(answer.retry_after or timedelta(0), MAX_RETRY_AFTER)))


_PASSING = frozenset({408, 409, 425, 429})
"""Refusals by a third party that pass: too slow, still at work on the same key, too early, too often."""


def decide_effect(
    answer: Answer, *, attempts: int, age: timedelta, give_up_after: timedelta, random: Callable[[], float]
) -> Decision:
    """What becomes of an effect after an attempt: a third party's refusal is final, its troubles are not.

    Args:
        answer: What the attempt brought.
        attempts: How many were made, this one included: at least 1.
        age: How long ago the effect was written.
        give_up_after: The age at which an attempt that fails was the last one.
        random: A number in [0, 1), for the jitter.
    """
    if answer.is_delivered:
        return Delivered()
    error = answer.error or f"answered {answer.status}"
    if answer.is_refused or (
        answer.status is not None and answer.status < 500 and answer.status not in _PASSING
    ):
        return GiveUp(error)
    if age >= give_up_after:
        return GiveUp(f"given up after {attempts} attempts; the last one: {error}")
    rest = SCHEDULE[min(attempts, len(SCHEDULE)) - 1] * (1 + JITTER * (2 * random() - 1))
    rest = max(rest, min(answer.retry_after or timedelta(0), MAX_RETRY_AFTER))
    return RetryIn(min(rest, max(give_up_after - age, timedelta(seconds=1))))
