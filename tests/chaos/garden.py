"""The garden: which entities the workload has sown, who owns them, and which jobs it may look after."""

import random
import threading
import uuid
from collections import deque
from dataclasses import dataclass, field

GROWN = 40
"""Operations after which an entity is left alone: its metadata, which remember each, shall stay small."""

_LATEST = 75


@dataclass(slots=True)
class Plot:
    """One entity.

    Attributes:
        version: The highest that an answer named.
        is_cleared: A deletion of it was begun; it may be sown anew.
        has_rest: A re-creation of it was begun: no further one.
    """

    entity: str
    user: str
    uses: int = 0
    version: int = 0
    is_cleared: bool = False
    has_rest: bool = False


@dataclass(frozen=True, slots=True)
class Errand:
    """A job that was accepted."""

    job: str
    op: int
    user: str
    is_scheduled: bool


@dataclass
class Garden:
    """Shared by all clients; every method may be called from any thread."""

    plots: dict[str, Plot] = field(default_factory=dict)
    _by_user: dict[str, deque[Plot]] = field(default_factory=dict)
    _cleared: dict[str, list[Plot]] = field(default_factory=dict)
    _errands: dict[str, list[Errand]] = field(default_factory=dict)
    _scheduled: dict[str, list[Errand]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def sow(self, user: str) -> Plot:
        """A new entity; not yet among those that :meth:`pick` finds."""
        with self._lock:
            plot = Plot(str(uuid.uuid4()), user)
            self.plots[plot.entity] = plot
            return plot

    def grow(self, plot: Plot) -> None:
        """Let others find it: its creation was sent."""
        with self._lock:
            self._by_user.setdefault(plot.user, deque(maxlen=24)).append(plot)

    def pick(self, user: str, chance: random.Random) -> Plot | None:
        """One that grows; at times one that was cleared away."""
        with self._lock:
            beds = [one for one in self._by_user.get(user, ()) if one.uses < GROWN]
            if chance.random() < 0.9:
                beds = [one for one in beds if not one.is_cleared or one.has_rest]
            if not beds:
                return None
            plot = chance.choice(beds)
            plot.uses += 1
            return plot

    def clear(self, plot: Plot) -> bool:
        """Begin to delete it; False where somebody has."""
        with self._lock:
            if plot.is_cleared:
                return False
            plot.is_cleared = True
            self._cleared.setdefault(plot.user, []).append(plot)
            return True

    def pick_cleared(self, user: str, chance: random.Random) -> Plot | None:
        """One to be sown anew, once."""
        with self._lock:
            cleared = self._cleared.get(user)
            if not cleared:
                return None
            plot = cleared.pop(chance.randrange(len(cleared)))
            plot.has_rest = True
            return plot

    def note_version(self, entity: str, version: int) -> None:
        """An answer named it."""
        with self._lock:
            plot = self.plots.get(entity)
            if plot is not None:
                plot.version = max(plot.version, version)

    def remember(self, errand: Errand) -> None:
        """A job was accepted."""
        with self._lock:
            self._errands.setdefault(errand.user, []).append(errand)
            if errand.is_scheduled:
                self._scheduled.setdefault(errand.user, []).append(errand)

    def errand(self, user: str, chance: random.Random, *, is_scheduled: bool = False) -> Errand | None:
        """A job to look at: mostly one of the latest, at times any."""
        with self._lock:
            mine = (self._scheduled if is_scheduled else self._errands).get(user, [])
            if not mine:
                return None
            first = 0 if chance.random() < 0.3 else max(len(mine) - _LATEST, 0)
            return mine[chance.randrange(first, len(mine))]
