"""The checker's rule for times: nothing before its time or after it, by whatever clock. Pure.

Time is the database's: the witness and the ledger stamp by it, and the harness' own clock is the same one.
"""

from collections.abc import Iterator
from datetime import datetime

from tests.chaos.evidence import Evidence, Op


def times(evidence: Evidence) -> Iterator[str]:
    """Operation by operation, and in the end what was withdrawn."""
    made_at = {nonce: one.at for one in evidence.testimonies for nonce in one.nonces}
    withdrawn = {line["job"] for line in evidence.lines if line["event"] == "withdraw"}
    for op in evidence.operations().values():
        name = f"operation {op.number} (job {op.job})"
        at = made_at.get(op.nonce)
        due, end, earliest_end = (_seconds(op, fact) for fact in ("run_at", "expires_at", "lasts_until"))
        if at is not None and due is not None and at < due:
            yield f"{name} took effect too early, by {due - at:.3f} s"
        if at is not None and end is not None and at > end:
            yield f"{name} took effect after it had expired, by {at - end:.3f} s"
        if op.state == "expired":
            floor = end if end is not None else earliest_end
            if floor is None:
                yield f"{name} expired, and was to last"
            elif op.finished is not None and _moment(op.finished) < floor:
                yield f"{name} expired too early, by {floor - _moment(op.finished):.3f} s"
        if op.state == "cancelled" and op.job not in withdrawn:
            yield f"{name} was cancelled, and nobody asked for that"


def _seconds(op: Op, fact: str) -> float | None:
    given = op.facts.get(fact)
    return None if given is None else _moment(given)


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
