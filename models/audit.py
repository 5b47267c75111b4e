"""The audit trail: who did what to which job, and why; also what was refused. Written, never changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from models.database import Database
from models.errors import Refusal
from models.failpoints import Step
from models.ids import new_id
from models.job import to_json
from models.log import MASK, names_a_secret


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts.

    Attributes:
        id: The user's; None for somebody at the command line.
        name: Email, or system user.
        request_id: Of the request that asks for it.
    """

    id: UUID | None
    name: str
    request_id: str | None = None


class AuditOutcome(StrEnum):
    """What came of it: done, only foreseen (a dry run), or refused with nothing changed."""

    DONE = "done"
    FORESEEN = "foreseen"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One act.

    Attributes:
        subject: What it was done to, as the actor named it.
        reason: The actor's.
        detail: What was asked for; secrets are masked and long texts cut on writing.
        error: The problem that it was refused with.
    """

    action: str
    subject: str
    outcome: AuditOutcome
    reason: str | None = None
    detail: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None


LONGEST_REASON = 1000


def told_reason(reason: str) -> str:
    """The reason for an act, which must say something.

    Raises:
        ValueError: It is blank, longer than :data:`LONGEST_REASON`, or has control characters.
    """
    if not reason.strip() or not reason.isprintable() or len(reason) > LONGEST_REASON:
        raise ValueError(
            f"must say something, in {LONGEST_REASON:,} characters at most, without control characters"
        )
    return reason


_LONGEST_SUBJECT = 200
_LONGEST_TEXT = 1000


class AuditTrail:
    """Writes entries, inside the caller's transaction."""

    def write(self, connection: Connection, actor: Actor, entries: Sequence[AuditEntry]) -> None:
        """Write ``entries`` of one actor."""
        if not entries:
            return
        rows = [
            {
                "id": new_id(),
                "actor_id": actor.id,
                "actor": actor.name,
                "action": entry.action,
                "subject": entry.subject[:_LONGEST_SUBJECT],
                "outcome": entry.outcome,
                "reason": entry.reason,
                "detail": _recorded(entry.detail),
                "error": entry.error,
                "request_id": actor.request_id,
            }
            for entry in entries
        ]
        connection.execute(_WRITE, {"rows": to_json(rows).decode()})


class RefusalTrail:
    """Writes down what was refused, each in a transaction of its own: that of the act changed nothing.

    Args:
        database: Where the trail is.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._trail = AuditTrail()

    def write(self, action: str, subject: str, refusal: Refusal, actor: Actor) -> None:
        """Record that ``action`` on ``subject`` was refused."""
        entry = AuditEntry(
            action=action,
            subject=subject,
            outcome=AuditOutcome.REFUSED,
            error=refusal.problem(actor.request_id),
        )
        with self._database.transaction(Step.REFUSE) as connection:
            self._trail.write(connection, actor, [entry])


def _recorded(value: Any) -> Any:
    """``value`` without secrets, by the names of its members, and without very long texts."""
    if isinstance(value, Mapping):
        return {name: MASK if names_a_secret(name) else _recorded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_recorded(item) for item in value]
    if isinstance(value, str) and len(value) > _LONGEST_TEXT:
        return f"{value[:_LONGEST_TEXT]}… ({len(value)} characters)"
    return value


_WRITE = text("""
INSERT INTO audit (id, actor_id, actor, action, subject, outcome, reason, detail, error, request_id)
SELECT id, actor_id, actor, action, subject, outcome, reason, detail, error, request_id
FROM json_populate_recordset(NULL::audit, CAST(:rows AS json))
""")
