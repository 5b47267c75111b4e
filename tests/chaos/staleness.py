"""The checker's rule for reads: none is older than what was shown before, but as the README says. Pure."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence

from tests.chaos.evidence import Evidence
from tests.chaos.history import Line

REPAYMENT_SECONDS = 5.0
"""The README says: what changed while Redis was away is forgotten within three seconds of its return."""

MOMENT_SECONDS = 2.0
"""It says: where workers alone do not reach Redis, a read may be old for the moment that it takes PostgreSQL
to tell the APIs. Both are generous, for busy machines. At any other time a read may not be old at all."""


def staleness(evidence: Evidence) -> Iterator[str]:
    """Read by read, held against what anybody had been shown before it was asked."""
    shown: dict[str, list[tuple[float, int]]] = defaultdict(list)  # when, and the highest version until then
    cleared: dict[str, float] = {}
    troubles, returns = _cache_troubles(evidence)
    for line in evidence.lines:
        if line["event"] == "invoke" and line["kind"] == "delete":
            cleared.setdefault(line["entity"], line["at"])
    for line in evidence.lines:
        match line["event"]:
            case "seen" if line["state"] == "succeeded" and "version" in line:
                _note(shown[line["entity"]], line["at"], line["version"])
            case "read":
                if _is_within(returns, line):
                    continue
                patience = MOMENT_SECONDS if _is_within(troubles, line) else 0.0
                floor = _floor(shown[line["entity"]], line["since"] - patience)
                if "version" not in line:
                    if (
                        floor
                        and line["status"] == 404
                        and cleared.get(line["entity"], line["at"]) >= line["at"]
                    ):
                        yield f"entity {line['entity']} was at {floor} and not found at {line['since']:.3f}"
                    continue
                if line["version"] < floor:
                    yield (
                        f"entity {line['entity']} was shown at {floor}, and read at {line['version']} "
                        f"at {line['since']:.3f}"
                    )
                _note(shown[line["entity"]], line["at"], line["version"])


_Span = tuple[float, float]


def _cache_troubles(evidence: Evidence) -> tuple[list[_Span], list[_Span]]:
    """When workers did not reach Redis; and when a read may be of any age.

    That is while Redis has just come back, and where those who were to be told by PostgreSQL did not
    reach it either.
    """
    troubles, returns = [], []
    begun = 0.0
    for line in evidence.lines:
        name = line.get("name", "").replace("api-redis", "")
        if "redis" not in name:
            continue
        if line["event"] == "fault":
            begun = line["at"]
        elif line["event"] == "healed":
            end = line["at"] + REPAYMENT_SECONDS
            troubles.append((begun, end))
            if "worker-redis" not in name:
                returns.append((line["at"] - 1, end))
            if "postgres" in name:
                returns.append((begun, end))
    return troubles, returns


def _is_within(spans: Sequence[_Span], line: Line) -> bool:
    return any(begin <= line["at"] and line["since"] <= end for begin, end in spans)


def _note(shown: list[tuple[float, int]], at: float, version: int) -> None:
    if not shown or version > shown[-1][1]:
        shown.append((at, version))


def _floor(shown: list[tuple[float, int]], since: float) -> int:
    place = bisect_left(shown, (since, 0))
    return shown[place - 1][1] if place else 0
