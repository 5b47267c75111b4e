"""The checker's rule for streams: who watched was told every transition once, in order, to the end. Pure."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from models.ids import created_at, parse_id
from tests.chaos.evidence import Evidence
from tests.chaos.history import Line
from tests.chaos.ledger import Transition


def streams(evidence: Evidence) -> Iterator[str]:
    """Watch by watch, held against the ledger's transitions."""
    begun: dict[int, Line] = {}
    told: dict[int, list[Line]] = defaultdict(list)
    ended: set[int] = set()
    for line in evidence.lines:
        match line["event"]:
            case "watching":
                begun[line["watch"]] = line
            case "told":
                told[line["watch"]].append(line)
            case "watched":
                ended.add(line["watch"])
    truth = {one.sequence: one for one in evidence.transitions}
    by_job: dict[str, list[Transition]] = defaultdict(list)
    by_owner: dict[str, list[Transition]] = defaultdict(list)
    for one in evidence.transitions:
        by_job[one.job].append(one)
        by_owner[one.owner].append(one)
    for watch, beginning in begun.items():
        whose = f"{beginning['user']}'s stream {watch}"
        if beginning["job"] is not None:
            whose += f" of job {beginning['job']}"
        due = (
            by_owner[evidence.users.get(beginning["user"], "")]
            if beginning["job"] is None
            else by_job[beginning["job"]]
        )
        found = [*_order(told[watch]), *_truth(told[watch], due, truth)]
        found += _completeness(beginning, told[watch], due, has_ended=watch in ended)
        yield from (f"{whose} {what}" for what in found)


def _order(lines: Sequence[Line]) -> Iterator[str]:
    last = 0
    is_over: set[str] = set()
    for line in lines:
        if line["sequence"] <= last:
            yield f"was told {line['sequence']} again or too late, after {last}, at {line['at']:.3f}"
        last = max(last, line["sequence"])
        if line["job"] in is_over:
            yield f"went on with job {line['job']} after its end, with {line['state']}"
        if line["done"] and line["state"] != "dead":  # that one may be redriven
            is_over.add(line["job"])


def _truth(
    lines: Sequence[Line], due: Sequence[Transition], truth: Mapping[int, Transition]
) -> Iterator[str]:
    theirs = {one.sequence for one in due}
    for line in lines:
        known = truth.get(line["sequence"])
        if known is None and _is_past_retention(line["job"]):
            continue
        if known is None or (known.job, known.state) != (line["job"], line["state"]):
            yield f"told {line['sequence']}: job {line['job']} {line['state']}, which never was"
        elif line["sequence"] not in theirs:
            yield f"told of job {line['job']}, which it is not about"


def _is_past_retention(job: str) -> bool:
    """Whether it was made to be pruned, by an id of long ago; the ledger has forgotten it."""
    identifier = parse_id(job)
    born = created_at(identifier) if identifier is not None else None
    return born is not None and born < datetime.now(UTC) - timedelta(days=2)


def _completeness(
    beginning: Line, lines: Sequence[Line], due: Sequence[Transition], *, has_ended: bool
) -> Iterator[str]:
    """Between what it began after and what it was told last there is no gap; at its end nothing is left."""
    seen = {line["sequence"] for line in lines}
    if not seen and not has_ended:
        return
    first = min(seen, default=0) - 1 if beginning["after"] is None else beginning["after"]
    is_for_good = has_ended and beginning["job"] is None
    last = float("inf") if is_for_good else max(seen, default=0)
    left_out = [one for one in due if first < one.sequence <= last and one.sequence not in seen]
    if left_out:
        shown = ", ".join(f"{one.sequence} ({one.job} {one.state})" for one in left_out[:3])
        yield f"was not told {len(left_out)} transitions: {shown}"
    if has_ended and beginning["job"] is not None and not (lines and lines[-1]["done"]):
        yield "ended before its job"
