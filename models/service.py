"""Business rules: what a job makes of an instance. Pure: no queries, no clock, no commit.

A resource with rules beyond its schemas subclasses :class:`ResourceService` and overrides
:meth:`~ResourceService.check` (and, rarely, :meth:`~ResourceService.replaced`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, Protocol
from uuid import UUID

import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError

from models import merge_patch, strict_json
from models.errors import Conflict, Detail, Forbidden, Invalid, NotFound, PreconditionFailed
from models.identity.principals import Action, Permissions, Principal, may, reach_of
from models.ids import parse_id
from models.job import Operation
from models.schema import refusal

Row = Mapping[str, Any]
"""One instance: column name -> value."""


class Declaration(Protocol):
    """What a service reads of its resource's declaration, see :class:`models.resource_type.ResourceType`."""

    @property
    def name(self) -> str:
        """Plural."""

    @property
    def singular(self) -> str:
        """How messages name one instance."""

    @property
    def create(self) -> type[BaseModel]:
        """Schema of a POST body."""

    @property
    def update(self) -> type[BaseModel]:
        """Schema of a PUT body, and of what a PATCH must lead to."""

    @property
    def read(self) -> type[BaseModel]:
        """Schema of what callers see."""

    @property
    def permissions(self) -> Permissions:
        """Which role may do what."""

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Values of columns that a creation may leave out."""

    def adapter(self, name: str) -> TypeAdapter[Any]:
        """The validator of one member of the update schema."""


class Effect(Enum):
    """What a change does to the instance's row."""

    NONE = "none"
    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Admitted:
    """A body that passed its schema.

    Attributes:
        payload: JSON text to keep in the ledger; None where the operation has no body.
        supplied_id: The id that the caller chose for a new instance.
    """

    payload: bytes | None
    supplied_id: UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One job, as the service needs it.

    Attributes:
        payload: JSON text from the ledger.
        now: The database's time, read after the lane was locked.
        buried_version: Last version of a deleted instance of this id; 0 where there was none.
    """

    operation: Operation
    resource_id: UUID
    payload: str | None
    if_match: int | None
    principal: Principal
    now: datetime
    buried_version: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """What a job made of its instance.

    Attributes:
        row: The instance afterwards; None once deleted.
        result: JSON text of the instance as the caller sees it; None after a delete.
        version: The version that this job made or read; None after a delete.
    """

    effect: Effect
    row: Row | None
    result: bytes | None
    version: int | None


class ResourceService:
    """The rules every resource shares: schemas, ownership, versions.

    Args:
        resource: The declaration whose schemas and permissions apply.
    """

    def __init__(self, resource: Declaration) -> None:
        self.resource = resource

    # ---- to override -------------------------------------------------------------------

    def check(self, before: Row | None, after: Row) -> None:
        """Refuse a change by raising a :class:`~models.errors.Refusal`. ``before`` is None on create."""

    def replaced(self, before: Row, document: BaseModel) -> dict[str, Any]:
        """The column values that a PUT leads to: all of the document's, absent ones at their default."""
        return document.model_dump()

    # ---- at the door -------------------------------------------------------------------

    def admit(self, operation: Operation, body: bytes) -> Admitted:
        """Check a body against the operation's schema.

        Args:
            operation: What the caller asks.
            body: JSON text; must be empty for delete and read.

        Raises:
            Invalid: Malformed, or against the schema; ``details`` name the members.
        """
        if operation in (Operation.DELETE, Operation.READ):
            if body.strip():
                raise Invalid(f"A {operation} takes no body")
            return Admitted(None)
        document = strict_json.parse(body)
        if not isinstance(document, dict):
            raise Invalid("The body must be a JSON object")
        if operation is Operation.PATCH:
            self._check_patch(document)
            return Admitted(body)
        supplied_id = None
        if operation is Operation.CREATE and "id" in document:
            supplied_id = parse_id(document["id"]) if isinstance(document["id"], str) else None
            if supplied_id is None:
                raise Invalid("The id is not a UUID", details=[Detail("id", "must be a UUID as text")])
            body = orjson.dumps({name: value for name, value in document.items() if name != "id"})
        schema = self.resource.create if operation is Operation.CREATE else self.resource.update
        _validated(schema, body)
        return Admitted(body, supplied_id)

    def _check_patch(self, patch: dict[str, Any]) -> None:
        """Check what can be known before the instance is: member names, and values of plain members."""
        fields = {
            info.alias or name: (name, info) for name, info in self.resource.update.model_fields.items()
        }
        problems = []
        for member, value in patch.items():
            if member not in fields:
                problems.append(Detail(member, "is not a member that can be changed"))
                continue
            name, info = fields[member]
            if value is None:
                if info.is_required():
                    problems.append(Detail(member, "cannot be removed"))
            elif not isinstance(value, dict):
                try:
                    self.resource.adapter(name).validate_json(orjson.dumps(value), strict=True)
                except ValidationError as error:
                    problems.extend(Detail(member, item["msg"]) for item in error.errors()[:3])
        if problems:
            raise Invalid("The patch does not fit the schema", details=problems)

    # ---- in the worker -----------------------------------------------------------------

    def apply(self, work: Work, current: Row | None) -> Change:
        """What ``work`` makes of the instance ``current`` (None: there is none).

        Raises:
            Refusal: A business rule forbids it; final, with the status that a caller would see.
        """
        self.authorize(work.principal, work.operation.action, current)
        if work.operation is Operation.CREATE:
            return self._created(work, current)
        if current is None:
            raise NotFound(f"There is no {self.resource.singular} {work.resource_id}")
        if work.if_match is not None and work.if_match != current["version"]:
            raise PreconditionFailed(
                f"The {self.resource.singular} is at version {current['version']}",
                current_version=current["version"],
            )
        if work.operation is Operation.DELETE:
            return Change(Effect.DELETE, None, None, None)
        if work.operation is Operation.READ:
            return Change(Effect.NONE, current, self.seen(current), current["version"])
        if work.operation is Operation.REPLACE:
            values = self.replaced(current, _validated(self.resource.update, work.payload or ""))
        else:
            values = self._patched(current, work.payload or "")
        after = {**current, **values, "version": current["version"] + 1, "updated_at": work.now}
        self.check(current, after)
        return Change(Effect.UPDATE, after, self.seen(after), after["version"])

    def authorize(self, principal: Principal, action: Action, current: Row | None) -> None:
        """Refuse what the role or the ownership forbids.

        Raises:
            NotFound: The instance is somebody else's and not visible to this principal.
            Forbidden: Visible, but this action is not granted.
        """
        permissions = self.resource.permissions
        owner_id = current["owner_id"] if current is not None else None
        if owner_id is not None and not may(permissions, principal, Action.READ, owner_id):
            raise NotFound(f"There is no such {self.resource.singular}")
        if reach_of(permissions, principal.role, action) is None or not may(
            permissions, principal, action, owner_id
        ):
            raise Forbidden(f"The role {principal.role} may not {action} {self.resource.name}")

    def seen(self, row: Row) -> bytes:
        """The instance as JSON text, by the read schema."""
        names = self.resource.read.model_fields
        document = self.resource.read.model_validate({name: row[name] for name in names}, by_name=True)
        return document.model_dump_json(by_alias=True).encode()

    def _created(self, work: Work, current: Row | None) -> Change:
        if current is not None:
            raise Conflict(f"The {self.resource.singular} {work.resource_id} exists already")
        after = {
            "id": work.resource_id,
            **self.resource.defaults,
            **_validated(self.resource.create, work.payload or "").model_dump(),
            "version": work.buried_version + 1,
            "owner_id": work.principal.id,
            "created_at": work.now,
            "updated_at": work.now,
        }
        self.check(None, after)
        return Change(Effect.INSERT, after, self.seen(after), after["version"])

    def _patched(self, current: Row, payload: str) -> dict[str, Any]:
        schema = self.resource.update
        present = schema.model_construct(**{name: current[name] for name in schema.model_fields})
        # A column's text where the schema has an enum writes the same JSON: no reason to warn.
        document = orjson.loads(present.model_dump_json(by_alias=True, warnings=False))
        merged = merge_patch.apply(document, orjson.loads(payload))
        return _validated(schema, orjson.dumps(merged)).model_dump()


def _validated(schema: type[BaseModel], body: bytes | str) -> BaseModel:
    """Validate JSON text strictly: no coercion between JSON types, members only by their wire names."""
    try:
        return schema.model_validate_json(body, strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        raise refusal(error) from error
