"""Everything that waits for changes in one process, wired to its one listener."""

from collections.abc import Awaitable, Callable
from uuid import UUID

from api_shim.changes.audience import Audience
from api_shim.changes.feed import Feed
from api_shim.changes.listener import Listener
from api_shim.changes.waiters import AnyChange, Waiters
from api_shim.changes.watches import Watches
from api_shim.web.threads import Threads
from models.database import Database
from models.job import Job
from models.job_history import JobHistory


class Hub:
    """One notification channel for waits, long-polls, event streams and WebSockets alike.

    Args:
        database: To listen and to read.
        read: Reads one job on the event loop, together with everybody else who reads just now.
        most_streams: Streams that one principal may have open.
    """

    def __init__(
        self, database: Database, read: Callable[[UUID], Awaitable[Job | None]], *, most_streams: int
    ) -> None:
        history = JobHistory()
        self._past = Threads("past", 2, max_waiting=100)
        self._any_change = AnyChange()
        self.watches = Watches(history)
        self.feed = Feed(database, history, self._past)
        self.waiters = Waiters(self.watches, self._any_change, read)
        self.audience = Audience(most_streams)
        readers = (self.watches, self.feed, self._any_change)
        self._listener = Listener(database, readers)
        for reader in readers:
            reader.on_arrival = self._listener.nudge

    def end(self) -> None:
        """Send everybody home; call it on the event loop when the process stops."""
        self.watches.end()
        self.feed.end()
        self._any_change.wake()

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()
        self._past.close()
