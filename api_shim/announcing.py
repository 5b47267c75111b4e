"""What the edge needs of announcing: a promise kept by :class:`tasks.announcer.Announcer`. No broker."""

from collections.abc import Iterable, Mapping
from typing import Protocol
from uuid import UUID

from models.job import Priority


class JobAnnouncer(Protocol):
    """Tells the workers what waits. Returns at once and never raises."""

    def jobs(self, accepted: Mapping[Priority, Iterable[UUID]]) -> None:
        """Announce jobs by priority."""

    def deliveries(self, ids: Iterable[UUID]) -> None:
        """Announce deliveries."""


class SilentAnnouncer:
    """Announces nothing, for load tests of the edge alone: the sweep finds everything by itself."""

    def jobs(self, accepted: Mapping[Priority, Iterable[UUID]]) -> None:
        """Say nothing."""

    def deliveries(self, ids: Iterable[UUID]) -> None:
        """Say nothing."""
