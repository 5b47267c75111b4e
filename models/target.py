"""A target: which instance a request is about, and in which lane it queues. The same for every door."""

from dataclasses import dataclass
from uuid import UUID

from models.errors import Detail, Invalid
from models.ids import new_id
from models.job import Operation
from models.resource_type import ResourceType
from models.service import Admitted


@dataclass(frozen=True, slots=True)
class Target:
    """An instance that is there or will be."""

    resource_id: UUID
    parent_id: UUID | None
    lane: int


def aim(
    resource: ResourceType,
    operation: Operation,
    admitted: Admitted,
    *,
    named_id: UUID | None,
    parent_id: UUID | None,
    if_match: int | None,
) -> Target:
    """Where an operation goes: to the instance that was named, or to a new one.

    Args:
        resource: Whose instance it is.
        operation: What is asked.
        admitted: The body; may choose the id of a new instance.
        named_id: The instance that was named beside the body.
        parent_id: The parent that was named.
        if_match: The version that is demanded.

    Raises:
        Invalid: It names too little, too much, or a version where there is none.
    """
    if if_match is not None and operation is Operation.CREATE:
        raise Invalid("If-Match does not go with a creation: there is no version to match yet")
    if if_match is not None and not resource.has_version:
        raise Invalid(f"If-Match does not go with {resource.name}: they have no version")
    if named_id is not None and admitted.supplied_id is not None and named_id != admitted.supplied_id:
        detail = Detail("id", "must be the one that was named beside the body, or left out")
        raise Invalid("The body's id is not the one that was named beside it", details=[detail])
    identifier = named_id or admitted.supplied_id
    if identifier is None:
        if operation is not Operation.CREATE:
            raise Invalid(f"A {operation} needs the id of its {resource.singular}")
        identifier = new_id()
    if (parent_id is None) is not (resource.parent is None):
        needs = "need the id of their parent" if resource.parent is not None else "have no parent"
        raise Invalid(f"{resource.name} {needs}", details=[Detail("parentId", needs)])
    return Target(identifier, parent_id, resource.lane(identifier, parent_id))
