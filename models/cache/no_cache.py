"""No cache: where there is no Redis. Every look finds nothing, and nothing is kept."""

from collections.abc import Iterable, Mapping, Sequence

from models.cache.cache import Entry, ListLook, Look, Mark


class NoCache:
    """See :class:`~models.cache.cache.Cache`."""

    def look(self, keys: Sequence[str]) -> Look:
        """Nothing."""
        return Look()

    def fill(self, look: Look, entries: Mapping[str, Entry]) -> None:
        """Keep nothing."""

    def look_at_list(self, key: str, question: str) -> ListLook:
        """Nothing."""
        return ListLook()

    def fill_list(self, look: ListLook, question: str, page: bytes) -> None:
        """Keep nothing."""

    def mark(self, keys: Iterable[str], lists: Iterable[str]) -> Mark:
        """Nobody to tell."""
        return Mark("")

    def settle(self, mark: Mark, entries: Mapping[str, Entry]) -> None:
        """Nothing to show."""

    def forget(self, keys: Iterable[str]) -> None:
        """Nothing is known."""

    def forget_all(self) -> None:
        """Nothing is known."""

    def close(self) -> None:
        """Nothing is owed."""
