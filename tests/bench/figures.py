"""Arithmetic on rounds: median, spread, and the ratio of two contenders round by round. No measuring."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with its extremes."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> "Spread":
        """The spread of at least one figure."""
        return cls(median(figures), min(figures), max(figures))

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} ({self.lowest:{spec}} to {self.highest:{spec}})"


def ratios(ours: Sequence[float], peer: Sequence[float]) -> Spread:
    """Ours over the peer's, each round with its neighbour: slow drifts of the machine cancel out.

    Raises:
        ValueError: The two did not run equally many rounds.
    """
    return Spread.of([mine / theirs for mine, theirs in zip(ours, peer, strict=True)])
