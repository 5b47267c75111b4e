"""A bound for a resource's own code, which may never return."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from billiard.process import current_process

LIMIT_SECONDS = 75.0
"""Above the 60 s after which PostgreSQL has ended the transaction around it (``models.database``)."""


@contextmanager
def bounded() -> Iterator[None]:
    """Let what is inside take :data:`LIMIT_SECONDS`; then the kernel ends this process by SIGALRM.

    So it is in the pool processes of Celery, each of which applies one batch at a time, and whose death is
    witnessed as any other; sends under way there are repeated under their id. Elsewhere nothing is bounded:
    the end would be that of an API, or of other batches, too.
    """
    if current_process().name == "MainProcess":
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
