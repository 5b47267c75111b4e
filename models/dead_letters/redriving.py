"""Redriving dead letters: judged, edited, applied once more as a new generation, and audited."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from models.audit import Actor, AuditEntry, AuditOutcome, AuditTrail
from models.database import Database
from models.dead_letters.edits import Edit
from models.dead_letters.judging import Judge, Prospect
from models.dead_letters.letters import DeadLetters, OpenedLetter
from models.errors import Conflict, NotFound, Refusal
from models.failpoints import Step
from models.identity.users import Users
from models.job import Job
from models.ledger import Ledger
from models.registry import Registry

REDRIVE, DISCARD = "redrive", "discard"


@dataclass(frozen=True, slots=True, kw_only=True)
class RedriveOrder:
    """What an operator asks.

    Attributes:
        reason: Why, for the audit trail.
        patch: Merge patch (RFC 7396) of each job's data.
        dry_run: Only say what would come of it.
    """

    reason: str
    patch: Mapping[str, Any] | None = None
    dry_run: bool = False


Answer = Job | Prospect | Refusal
"""The job of a new generation; what a dry run foresees; or why it was refused, with nothing changed."""


class Redriver:
    """Redrives and discards dead letters; each act leaves its entry in the audit trail.

    Args:
        database: Where the ledger is.
        ledger: Makes the new generation.
        registry: Today's schemas and rules.
        users: Whose jobs they are, as they stand now.
    """

    def __init__(self, database: Database, ledger: Ledger, registry: Registry, users: Users) -> None:
        self._database = database
        self._ledger = ledger
        self._registry = registry
        self._secret_names = frozenset(
            name for one in registry for member in one.service.secret_members.items() for name in member
        )
        self._users = users
        self._judge = Judge(registry)
        self._letters = DeadLetters()
        self._audit = AuditTrail()

    def redrive(self, job_ids: Sequence[UUID], order: RedriveOrder, actor: Actor) -> list[Answer]:
        """Redrive ``job_ids`` in one transaction, or foresee it; an answer for each, in its place.

        One that is refused refuses only itself. Announce the jobs among the answers. Takes seconds where
        the patch brings secrets to many: keep it off the event loop.
        """
        edit = Edit(order.patch, self._secret_names) if order.patch is not None else None
        with self._database.transaction(Step.REDRIVE) as connection:
            letters = self._letters.pick_up(connection, job_ids)
            answers = self._judged(connection, job_ids, letters, order, edit)
            if not order.dry_run:
                answers = self._revived(connection, answers)
            entries = []
            for job_id, answer in zip(job_ids, answers, strict=True):
                is_known = self._is_known(letters.get(job_id))
                patch = edit.recorded(is_known=is_known) if edit is not None else None
                entries.append(_entry(job_id, order, patch, answer, actor))
            self._audit.write(connection, actor, entries)
        return answers

    def redrive_one(self, job_id: UUID, order: RedriveOrder, actor: Actor) -> Job | Prospect:
        """Redrive one job, or foresee it.

        Raises:
            Refusal: It was refused; nothing was changed, and the refusal is in the audit trail.
        """
        answer = self.redrive([job_id], order, actor)[0]
        if isinstance(answer, Refusal):
            raise answer
        return answer

    def discard(self, job_ids: Sequence[UUID], reason: str, actor: Actor) -> list[UUID]:
        """Put dead letters away for good, and tell that they are resolved; which were put away."""
        with self._database.transaction(Step.DISCARD) as connection:
            done = set(self._ledger.discard(connection, job_ids))
            refusal = Conflict("Only a dead job that was not discarded yet can be discarded")
            entries = [
                AuditEntry(
                    action=DISCARD,
                    subject=str(one),
                    outcome=AuditOutcome.DONE if one in done else AuditOutcome.REFUSED,
                    reason=reason,
                    error=None if one in done else refusal.problem(actor.request_id),
                )
                for one in job_ids
            ]
            self._audit.write(connection, actor, entries)
        return [one for one in job_ids if one in done]

    # ---- in the transaction --------------------------------------------------------------

    def _judged(
        self,
        connection: Connection,
        job_ids: Sequence[UUID],
        letters: Mapping[UUID, OpenedLetter],
        order: RedriveOrder,
        edit: Edit | None,
    ) -> list[Answer]:
        now = self._ledger.clock(connection)
        busy = self._ledger.lanes_in_use(connection, [one.lane for one in letters.values()])
        owners = list({one.job.principal_id for one in letters.values()})
        principals = self._users.principals(connection, owners)
        answers: list[Answer] = []
        for job_id in job_ids:
            letter = letters.get(job_id)
            try:
                if letter is None:
                    raise NotFound("There is no such job")
                prospect = self._judge.judge(
                    connection,
                    letter,
                    edit,
                    principals.get(letter.job.principal_id),
                    now,
                    waits=letter.lane in busy,
                )
            except Refusal as refusal:
                answers.append(refusal)
                continue
            answer = prospect if order.dry_run else prospect.refusal or prospect
            if isinstance(answer, Prospect):
                busy.add(letter.lane)  # the next one in this lane comes behind it
            answers.append(answer)
        return answers

    def _revived(self, connection: Connection, answers: Sequence[Answer]) -> list[Answer]:
        redrives = {
            one.letter.job.id: one.payload if one.is_edited else None
            for one in answers
            if isinstance(one, Prospect)
        }
        if not redrives:
            return list(answers)
        self._ledger.redrive(connection, redrives)
        jobs = self._ledger.find(connection, list(redrives))
        return [jobs[one.letter.job.id] if isinstance(one, Prospect) else one for one in answers]

    def _is_known(self, letter: OpenedLetter | None) -> bool:
        return letter is not None and letter.job.resource in self._registry


def _entry(
    job_id: UUID, order: RedriveOrder, patch: Mapping[str, Any] | None, answer: Answer, actor: Actor
) -> AuditEntry:
    detail: dict[str, Any] = {"dryRun": order.dry_run}
    if patch is not None:
        detail["patch"] = patch
    error = None
    match answer:
        case Job() as job:
            outcome = AuditOutcome.DONE
            detail["generation"] = job.generation
        case Prospect():
            outcome = AuditOutcome.FORESEEN
        case Refusal() as refusal:
            outcome, error = AuditOutcome.REFUSED, refusal.problem(actor.request_id)
    return AuditEntry(
        action=REDRIVE,
        subject=str(job_id),
        outcome=outcome,
        reason=order.reason,
        detail=detail,
        error=error,
    )
