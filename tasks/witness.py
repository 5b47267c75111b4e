"""The witness: tells the ledger what killed a worker's child, while its message is still in hand.

Celery's main process sees its children die and knows by which signal; the job that was at work is found
by the crash attempt that the child had recorded before it tried (``Applier``).
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, cast

from billiard.exceptions import WorkerLostError
from celery.worker.request import Request

from models import failpoints
from models.failpoints import Step

Witness = Callable[[Sequence[str], int, str], None]
"""Takes the ids of a lost message, the child's process id, and what killed it."""

_CAUSE = re.compile(r"signal \d+ \((\w+)\)|signal \d+|exitcode \d+")


class PlainRequest(Request):
    """Celery's request, whose acknowledgement is a step that failpoints know."""

    def acknowledge(self) -> None:
        """See :class:`celery.worker.request.Request`."""
        failpoints.before(Step.ACKNOWLEDGE_TASK)
        super().acknowledge()
        failpoints.after(Step.ACKNOWLEDGE_TASK)


def witnessed(tell: Witness) -> type[Request]:
    """Celery's request (see its "Custom requests") that tells of a lost child before its message goes back.

    Args:
        tell: Must not raise.
    """

    class WitnessedRequest(PlainRequest):
        """A message at work in a child."""

        def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
            """See :class:`celery.worker.request.Request`."""
            cause = cause_of_loss(exc_info.exception)
            if cause is not None and self.worker_pid and self.args:
                tell(cast(Sequence[str], self.args[0]), int(self.worker_pid), cause)
            super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    return WitnessedRequest


def cause_of_loss(error: BaseException) -> str | None:
    """``SIGKILL`` or ``exitcode 1``; None where no child was lost."""
    error = getattr(error, "exc", error)  # as billiard wraps it
    if isinstance(error, SystemExit):
        return f"exitcode {error.code}"
    if not isinstance(error, WorkerLostError):
        return None
    found = _CAUSE.search(str(error))
    return "unknown" if found is None else found.group(1) or found.group(0)
