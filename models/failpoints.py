"""Failpoints: the steps at whose sides tests have a process kill itself. Who arms them: ``tests/chaos``.

Compiled in only where ``WAYBILL_TEST_FAILPOINTS`` names a folder when this module is imported; it is a
variable of the tests, no setting. Everywhere else :func:`before` and :func:`after` are empty functions. With
it, a process that comes to a point whose file stands in that folder takes the file away (by renaming, so one
process only) and kills itself with SIGKILL: no ``finally``, no farewell, as in a power cut.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

VARIABLE = "WAYBILL_TEST_FAILPOINTS"
_FOLDER = os.environ.get(VARIABLE, "")


class Step(StrEnum):
    """Everything that is done for good: each commit, publish, acknowledgement, send and word to the cache."""

    # Commits of what was asked. See :meth:`models.database.Database.transaction`.
    ACCEPT = "accept"
    CANCEL = "cancel"
    REDRIVE = "redrive"
    REFUSE = "refuse"
    """In the audit only: it was refused before it was understood."""
    DISCARD = "discard"
    LOG_IN = "log-in"
    COUNT_FAILED_LOG_IN = "count-failed-log-in"
    REFRESH = "refresh"
    LOG_OUT = "log-out"
    ENROLL_MFA = "enroll-mfa"
    CONFIRM_MFA = "confirm-mfa"
    REGISTER_ENDPOINT = "register-endpoint"
    ROTATE_ENDPOINT = "rotate-endpoint"
    REMOVE_ENDPOINT = "remove-endpoint"
    RESEND = "resend"
    RECOVER = "recover"
    """And each step, after that, of making up for what was missed."""
    RESEAL = "reseal"
    """Of stored secrets, under a new key."""

    # Commits of applying.
    APPLY = "apply"
    APPLY_ALONE = "apply-alone"
    CRASH_ATTEMPT = "crash-attempt"
    """On record, or taken back."""
    VERDICT = "verdict"
    WITNESS = "witness"

    # Commits of the sweep and of retention.
    WAKE = "wake"
    """Of scheduled jobs; and the end of expired ones."""
    CLAIM_JOBS = "claim-jobs"
    CLAIM_DELIVERIES = "claim-deliveries"
    PRUNE_JOBS = "prune-jobs"
    """And what belongs to them."""
    PRUNE_REST = "prune-rest"
    """Log-in failures, ended sessions, dead messages, the audit."""

    # Commits of delivering.
    CLAIM = "claim"
    CLAIM_DIRECTLY = "claim-directly"
    """While the broker is away."""
    EXTEND = "extend"
    """The claim, just before a send; or the finding that nothing is to be sent."""
    SETTLE_SEND = "settle-send"
    SETTLE_PUBLISH = "settle-publish"
    PUT_OFF = "put-off"
    """Until its receiver's breaker lets a probe go."""
    PUT_OFF_PUBLISH = "put-off-publish"
    """The broker went away."""
    PUT_OFF_SURPLUS = "put-off-surplus"
    """Too many wait for one receiver."""
    PUT_OFF_OURS = "put-off-ours"
    """It cannot be built: the fault is ours."""
    GIVE_BACK = "give-back"
    """What was not begun when its worker was told to stop."""
    GIVE_UP = "give-up"
    """Its receiver's breaker, or a fault of ours, outlasted its patience."""
    GIVE_UP_REPLY = "give-up-reply"
    """No queue takes it."""

    KEEP_DEAD_MESSAGE = "keep-dead-message"

    # Messages: after each the broker has confirmed it (``ANSWER_UPSTREAM`` goes at best effort).
    ANNOUNCE_JOBS = "announce-jobs"
    ANNOUNCE_DELIVERIES = "announce-deliveries"
    REANNOUNCE_JOBS = "reannounce-jobs"
    REANNOUNCE_DELIVERIES = "reannounce-deliveries"
    PUBLISH_REPLY = "publish-reply"
    PUBLISH_EVENT = "publish-event"
    DEAD_LETTER = "dead-letter"
    ANSWER_UPSTREAM = "answer-upstream"

    # Acknowledgements; and what of upstream's messages comes before all that.
    TAKE_IN = "take-in"
    """Of a batch of upstream's messages; its commit is an ``ACCEPT``."""
    ACKNOWLEDGE_UPSTREAM = "acknowledge-upstream"
    ACKNOWLEDGE_DEAD_MESSAGES = "acknowledge-dead-messages"
    ACKNOWLEDGE_TASK = "acknowledge-task"

    # Over HTTP: after each the answer is known, and not yet settled.
    SEND_CALLBACK = "send-callback"
    SEND_EFFECT = "send-effect"

    # The cache: the mark is the last word before the commit, settling the first after it.
    MARK_CACHE = "mark-cache"
    SETTLE_CACHE = "settle-cache"


def points() -> Iterator[str]:
    """The name of every failpoint: that of its file."""
    for step in Step:
        yield f"before-{step}"
        yield f"after-{step}"


IS_COMPILED_IN = bool(_FOLDER)

if IS_COMPILED_IN:

    def before(step: Step | None) -> None:
        """Come to the point before ``step``; None: to none."""
        if step is not None:
            _reach(f"before-{Step(step)}")

    def after(step: Step | None) -> None:
        """Come to the point after ``step``; None: to none."""
        if step is not None:
            _reach(f"after-{Step(step)}")

else:

    def before(step: Step | None) -> None:
        """Nothing: no failpoints are compiled in."""

    def after(step: Step | None) -> None:
        """Nothing: no failpoints are compiled in."""


def _reach(point: str) -> None:
    armed = Path(_FOLDER) / point
    with suppress(FileNotFoundError):
        armed.rename(armed.with_name(f"{point}.{os.getpid()}"))
        os.kill(os.getpid(), signal.SIGKILL)
