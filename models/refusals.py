"""What a write can be refused for at once, by the instances as they stand. No later state can lift it.

Reads only. The worker judges again when the write's turn has come.
"""

from collections.abc import Collection, Iterable, Sequence
from uuid import UUID

from sqlalchemy import Connection, text

from models.errors import Invalid, PreconditionFailed, Refusal
from models.identity.principals import Action
from models.job import Door, Operation, Submission
from models.registry import Resource


def ids_behind_a_creation(batch: Iterable[Submission]) -> set[UUID]:
    """Those of ``batch`` whose instance, or its parent, an earlier one of it creates: it is yet to come."""
    created: set[UUID] = set()
    behind: set[UUID] = set()
    for one in batch:
        if one.resource_id in created or one.parent_id in created:
            behind.add(one.job_id)
        if one.operation is Operation.CREATE:
            created.add(one.resource_id)
    return behind


def refusals_by_expiry(connection: Connection, batch: Sequence[Submission]) -> dict[UUID, Refusal]:
    """Refusals of what is too late, by the database's clock. Over AMQP it becomes a job that expired."""
    expiring = {one.job_id: one.expires_at for one in batch if one.expires_at and one.door is Door.HTTP}
    if not expiring:
        return {}
    now = connection.execute(_NOW).scalar_one()
    passed = (job_id for job_id, expires_at in expiring.items() if expires_at <= now)
    return {job_id: Invalid("Waybill-Expires-At has passed already") for job_id in passed}


def refusals_by_parent(
    connection: Connection,
    resource: Resource,
    parent: Resource,
    batch: Sequence[Submission],
    to_come: Collection[UUID],
) -> dict[UUID, Refusal]:
    """Refusals of what is asked of parts of a parent that is not there, hidden, or another's to write to."""
    answers: dict[UUID, Refusal] = {}
    ids = [one.parent_id for one in batch if one.parent_id is not None]
    heads = parent.repository.heads(connection, ids)
    for one in batch:
        head = heads.get(one.parent_id) if one.parent_id is not None else None
        if head is None:
            if one.job_id not in to_come:
                answers[one.job_id] = parent.service.absent()
            continue
        try:
            parent.service.authorize(one.principal, Action.READ, {"owner_id": head.owner_id})
            if one.operation is Operation.CREATE:
                resource.service.authorize_for(one.principal, Action.WRITE, head.owner_id)
        except Refusal as refusal:
            answers[one.job_id] = refusal
    return answers


def refusals_by_instance(
    connection: Connection, resource: Resource, batch: Sequence[Submission], to_come: Collection[UUID]
) -> dict[UUID, Refusal]:
    """Refusals of what is asked of an instance that is not there, hidden, another's, or past that version."""
    answers: dict[UUID, Refusal] = {}
    if not batch:
        return answers
    heads = resource.repository.heads(connection, [one.resource_id for one in batch])
    for one in batch:
        head = heads.get(one.resource_id)
        if head is None or (resource.parent is not None and head.parent_id != one.parent_id):
            if head is not None or one.job_id not in to_come:
                answers[one.job_id] = resource.service.absent()
            continue
        try:
            resource.service.authorize(one.principal, one.operation.action, {"owner_id": head.owner_id})
        except Refusal as refusal:
            answers[one.job_id] = refusal
            continue
        if one.if_match is not None and one.if_match < head.version:
            answers[one.job_id] = PreconditionFailed(
                f"The {resource.type.singular} is at version {head.version}", current_version=head.version
            )
    return answers


_NOW = text("SELECT clock_timestamp()")
