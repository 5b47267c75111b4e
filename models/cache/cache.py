"""What a cache promises: never to show an instance older than a change that was committed before the look.

Two keep it: ``redis_cache.py``, and ``no_cache.py``, which keeps nothing. What is kept is ``views.py``'s.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Entry:
    """What is kept under a key.

    Attributes:
        version: Grows with every change of what it shows.
        payload: Bytes that mean something to whoever put them.
    """

    version: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Look:
    """What was found.

    Attributes:
        found: Entries by key.
        lease: Given for the keys in ``leased``; whoever reads their truth *now* may fill them with it.
        leased: Keys without an entry. Those that somebody is changing are in neither.
    """

    found: Mapping[str, Entry] = field(default_factory=dict)
    lease: str = ""
    leased: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ListLook:
    """What was found of a list.

    Attributes:
        page: The answer to the question, if it is kept.
        generation: Where an answer that is read *now* may be kept; empty where somebody is changing the list.
    """

    page: bytes | None = None
    generation: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """Tells readers that something is about to change.

    Attributes:
        token: Names it.
        keys: Of single entries.
        lists: Of lists.
        is_set: Whether readers see it. Where not, what was marked is forgotten when it is settled.
    """

    token: str
    keys: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    is_set: bool = False


class Cache(Protocol):
    """Keeps what is read often. No method raises for a cache that is away; any entry may be gone any time.

    A change is marked before its commit and settled after it. Between the two readers go to the database
    and fill nothing, and so they do after a crash between the two, until the mark has expired::

                      look               fill                       mark
            (nothing) ────▶ leased ────────────▶ entry ──────────────────────▶ marked ─┐
                ▲              │ mark                                            ▲   │   │ settle
                │              └─────────────────────────────────────────────────┘   │   ▼
                └──────────────────────── expired ◀──────────────────────────────────┘ entry
    """

    def look(self, keys: Sequence[str]) -> Look:
        """What is kept under ``keys``. Read the truth of the others after this call, not before it."""

    def fill(self, look: Look, entries: Mapping[str, Entry]) -> None:
        """Keep what was read after ``look``, where nobody has begun a change since."""

    def look_at_list(self, key: str, question: str) -> ListLook:
        """The answer to ``question`` about a list, if it is kept."""

    def fill_list(self, look: ListLook, question: str, page: bytes) -> None:
        """Keep the answer that was read after ``look``."""

    def mark(self, keys: Iterable[str], lists: Iterable[str]) -> Mark:
        """Tell readers of a change, as the last thing before its commit."""

    def settle(self, mark: Mark, entries: Mapping[str, Entry]) -> None:
        """Show what was committed. A marked key without an entry is forgotten; lists begin anew."""

    def forget(self, keys: Iterable[str]) -> None:
        """Show nothing that was kept under these before, of entries and lists."""

    def forget_all(self) -> None:
        """Show nothing that was kept before: for a process whose predecessor may have died in debt."""

    def close(self) -> None:
        """Settle what is owed, as far as it goes."""
