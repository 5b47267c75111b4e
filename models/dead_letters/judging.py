"""Judging a redrive: would this dead job, edited or not, be applied today? Tried out, and taken back."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import Connection, exc

from models.database import is_transient
from models.dead_letters.edits import Edit
from models.dead_letters.letters import OpenedLetter
from models.errors import (
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    PreconditionFailed,
    Refusal,
)
from models.identity.principals import Action, Principal
from models.job import Operation
from models.registry import Registry, Resource
from models.repository import as_refusal
from models.service import Change, Effect, Work


@dataclass(frozen=True, slots=True)
class Fault:
    """It would fail again, for a reason that is not the caller's."""

    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospect:
    """What a redrive would lead to.

    Attributes:
        payload: The data that it would be applied with (JSON text); None where it has none.
        is_edited: Whether that differs from what the job has.
        foreseen: The change, the refusal, or the fault; None where nobody may try it out.
        waits: Other jobs are ahead of it in its lane, so this may turn out otherwise.
    """

    letter: OpenedLetter
    payload: bytes | None
    is_edited: bool
    foreseen: Change | Refusal | Fault | None
    waits: bool

    @property
    def refusal(self) -> Refusal | None:
        """Why it must not be redriven: it is certain to be refused again."""
        if not isinstance(self.foreseen, Refusal):
            return None
        return self.foreseen if not self.waits or _is_for_good(self.foreseen, self.letter) else None

    def document(self, request_id: str | None) -> dict[str, Any]:
        """The wire document of a dry run."""
        job = self.letter.job
        document: dict[str, Any] = {
            "dryRun": True,
            "jobId": job.id,
            "generation": job.generation + 1,
            "operation": job.operation,
            "resource": job.resource,
            "resourceId": job.resource_id,
            "ifMatch": self.letter.if_match,
            "data": None if self.payload is None else orjson.Fragment(self.payload),
            "waits": self.waits,
        }
        match self.foreseen:
            case Change() as change:
                result = None if change.result is None else orjson.Fragment(change.result)
                document |= {"outcome": "succeeded", "version": change.version, "result": result}
            case Refusal() as refusal:
                document |= {"outcome": "failed", "error": refusal.problem(request_id)}
            case Fault(kind):
                document |= {"outcome": "dead", "reason": kind}
            case None:
                document |= {
                    "outcome": "unknown",
                    "reason": "It killed its workers: only a worker may try it",
                }
        return document


def _is_for_good(refusal: Refusal, letter: OpenedLetter) -> bool:
    """Whether nothing that happens in the lane meanwhile could lift it."""
    if isinstance(refusal, PreconditionFailed):
        return letter.if_match is not None and letter.if_match < refusal.current_version
    return isinstance(refusal, Invalid | Forbidden)


class Judge:
    """Judges redrives, inside the caller's transaction; leaves no trace in it.

    Args:
        registry: Services and repositories by resource.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def judge(
        self,
        connection: Connection,
        letter: OpenedLetter,
        edit: Edit | None,
        principal: Principal | None,
        now: datetime,
        *,
        waits: bool,
    ) -> Prospect:
        """What a redrive of ``letter`` would lead to.

        Args:
            connection: The caller's transaction.
            letter: Picked up in it.
            edit: Of the job's data. Sealing the secrets in it may take long.
            principal: Whose job it is, as that user stands now; None: disabled or gone.
            now: The database's time.
            waits: Whether other jobs are ahead of it.

        Raises:
            Refusal: It cannot be redriven at all, or not so: it is not dead, or the edit is impossible.
        """
        _check(letter)
        if letter.job.resource not in self._registry:
            raise Conflict(f"The resource {letter.job.resource} is not served any more")
        resource = self._registry[letter.job.resource]
        payload = letter.payload.encode() if letter.payload is not None else None
        if edit is not None:
            payload = edit.applied(resource, letter)
        foreseen: Change | Refusal | Fault | None
        if principal is None:
            foreseen = Forbidden("The user who asked for this is disabled or gone")
        else:
            foreseen = self._try_out(connection, resource, letter, payload, principal, now)
        return Prospect(
            letter=letter, payload=payload, is_edited=edit is not None, foreseen=foreseen, waits=waits
        )

    def _try_out(
        self,
        connection: Connection,
        resource: Resource,
        letter: OpenedLetter,
        payload: bytes | None,
        principal: Principal,
        now: datetime,
    ) -> Change | Refusal | Fault | None:
        identifier, operation = letter.job.resource_id, letter.job.operation
        repository = resource.repository
        current = repository.load_many(connection, [identifier]).get(identifier)
        if letter.kills_workers:  # the resource's own rules may be what kills: they must not run here
            if operation is not Operation.CREATE and current is None:
                return resource.service.absent()
            version = current["version"] if current is not None else 0
            if letter.if_match is not None and current is not None and letter.if_match != version:
                return PreconditionFailed(
                    f"The {resource.type.singular} is at version {version}", current_version=version
                )
            return None
        owner_id = None
        if resource.parent is not None and letter.job.parent_id is not None:
            parent_id = letter.job.parent_id
            parent = resource.parent.repository.load_many(connection, [parent_id]).get(parent_id)
            if parent is None:
                return resource.parent.service.absent()
            try:
                resource.parent.service.authorize(principal, Action.READ, parent)
            except Refusal as refusal:
                return refusal
            owner_id = parent["owner_id"]
        work = Work(
            operation=operation,
            resource_id=identifier,
            payload=None if payload is None else payload.decode(),
            if_match=letter.if_match,
            principal=principal,
            now=now,
            parent_id=letter.job.parent_id,
            owner_id=owner_id,
            buried_version=repository.buried_versions(connection, [identifier]).get(identifier, 0),
        )
        try:
            change = resource.service.apply(work, current)
            self._write_and_take_back(connection, resource, change, letter, current)
        except Refusal as refusal:
            return refusal
        except exc.DBAPIError as error:
            translated = as_refusal(error)
            if isinstance(translated, Refusal):
                return translated
            if is_transient(error):
                raise
            return Fault(type(error.orig).__name__)
        except Exception as error:
            return Fault(type(error).__name__)
        return change

    def _write_and_take_back(
        self,
        connection: Connection,
        resource: Resource,
        change: Change,
        letter: OpenedLetter,
        current: Mapping[str, Any] | None,
    ) -> None:
        """Have the database's own rules judge too."""
        savepoint = connection.begin_nested()
        try:
            if change.effect is Effect.INSERT and change.row is not None:
                if not resource.repository.insert_many(connection, [change.row]):
                    raise Conflict("Another instance has the same value of a unique member")
            elif change.effect is Effect.UPDATE and change.row is not None and current is not None:
                resource.repository.update_many(connection, [(change.row, current["version"])])
            elif change.effect is Effect.DELETE and current is not None:
                versions = {letter.job.resource_id: current["version"]}
                for part in self._registry.children(letter.job.resource):
                    part.repository.delete_parts(connection, list(versions))
                resource.repository.delete_many(connection, versions)
        finally:
            savepoint.rollback()


def _check(letter: OpenedLetter) -> None:
    if not letter.is_dead:
        raise Conflict(f"Only a dead job can be redriven; this one is {letter.job.state}")
    if letter.discarded_at is not None:
        raise Conflict("The job was discarded")
    if letter.has_expired:
        raise Gone("The job's expiresAt has passed: it may not be applied any more")
