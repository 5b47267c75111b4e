"""Business rules: what a job makes of an instance. Pure: no queries, no clock, no commit.

A resource with rules beyond its schemas subclasses :class:`ResourceService` and overrides
:meth:`~ResourceService.check` (and, rarely, :meth:`~ResourceService.replaced`).
"""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, Protocol
from uuid import UUID

import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError

from models import merge_patch, strict_json
from models.errors import (
    ConfigurationError,
    Conflict,
    Detail,
    Forbidden,
    Invalid,
    NotFound,
    PreconditionFailed,
    Unfamiliar,
)
from models.identity.principals import Action, Permissions, Principal, may, reach_of
from models.identity.sealing import Sealer
from models.ids import parse_id
from models.job import Operation
from models.schema import is_write_only, refusal, sealed_form

Row = Mapping[str, Any]
"""One instance: column name -> value."""

MAX_SECRETS = 20
"""Writes with secrets in one request: a password takes as long to hash as a thousand rows to store."""


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

    @property
    def parent_column(self) -> str | None:
        """The column that holds the parent's id, where there is a parent."""

    @property
    def has_version(self) -> bool:
        """Whether callers see versions."""

    @property
    def write_only(self) -> frozenset[str]:
        """Columns that callers set and never see."""

    @property
    def takes_object(self) -> frozenset[str]:
        """Columns of the update schema that a JSON object may fit."""

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
        parent_id: The parent that the caller named, where the resource has a parent.
        owner_id: Whose a new instance is; None: the principal's.
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
    parent_id: UUID | None = None
    owner_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """What a job made of its instance.

    Attributes:
        row: The instance afterwards; None once deleted.
        result: JSON text of the instance as the caller sees it; None after a delete.
        version: The version that this job made or read, where callers see one; None after a delete.
    """

    effect: Effect
    row: Row | None
    result: bytes | None
    version: int | None


class ResourceService:
    """The rules every resource shares: schemas, ownership, versions, secrets.

    Args:
        resource: The declaration whose schemas and permissions apply.
        sealer: Gives what seals write-only members on their way through the ledger, once it is needed.
    """

    def __init__(self, resource: Declaration, sealer: Callable[[], Sealer] | None = None) -> None:
        self.resource = resource
        self._sealer = sealer

    # ---- to override -------------------------------------------------------------------

    def check(self, before: Row | None, after: Row) -> None:
        """Refuse a change by raising a :class:`~models.errors.Refusal`. ``before`` is None on create."""

    def replaced(self, before: Row, document: BaseModel) -> dict[str, Any]:
        """The column values that a PUT leads to: all of the document's, absent ones at their default."""
        return document.model_dump()

    def derived(self, before: Row | None, after: Row, now: datetime) -> dict[str, Any]:
        """Columns that follow from others; called before :meth:`check`, at ``now``."""
        return {}

    def kept_of(self, column: str, secret: str) -> str:
        """What the table keeps of a write-only member. Called off the event loop: it may be slow."""
        return secret

    # ---- at the door -------------------------------------------------------------------

    def admit(self, operation: Operation, body: bytes, sealed: frozenset[str] = frozenset()) -> Admitted:
        """Check a body against the operation's schema.

        Args:
            operation: What the caller asks.
            body: JSON text; must be empty for delete and read.
            sealed: Columns of write-only members that are sealed in it already, and were admitted before.

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
            self._check_patch(document, sealed)
            return Admitted(body)
        supplied_id = None
        if operation is Operation.CREATE and "id" in document:
            supplied_id = parse_id(document["id"]) if isinstance(document["id"], str) else None
            if supplied_id is None:
                raise Invalid("The id is not a UUID", details=[Detail("id", "must be a UUID as text")])
            body = orjson.dumps({name: value for name, value in document.items() if name != "id"})
        schema = self.resource.create if operation is Operation.CREATE else self.resource.update
        _validated(sealed_form(schema, sealed), body)
        return Admitted(body, supplied_id)

    def _check_patch(self, patch: dict[str, Any], sealed: frozenset[str]) -> None:
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
                if info.is_required() or is_write_only(info):
                    problems.append(Detail(member, "cannot be removed"))
            elif isinstance(value, dict):
                if name not in self.resource.takes_object:
                    problems.append(Detail(member, "takes no object"))
            elif name not in sealed:
                try:
                    self.resource.adapter(name).validate_json(orjson.dumps(value), strict=True)
                except ValidationError as error:
                    problems.extend(Detail(member, item["msg"]) for item in error.errors()[:3])
        if problems:
            raise Invalid("The patch does not fit the schema", details=problems)

    @property
    def has_secrets(self) -> bool:
        """Whether payloads must go through :meth:`secured` before they are kept."""
        return bool(self.resource.write_only)

    @property
    def secret_members(self) -> dict[str, str]:
        """The column of each write-only member."""
        fields = {**self.resource.create.model_fields, **self.resource.update.model_fields}
        return {fields[column].alias or column: column for column in self.resource.write_only}

    def secured(self, payload: bytes, resource_id: UUID, given: Container[str] | None = None) -> bytes:
        """An admitted payload with each write-only member replaced by what is kept of it, sealed.

        So the ledger never holds a secret, and shows nothing of it to whoever shows a payload. The seal
        opens for this instance only.

        Args:
            payload: JSON text that passed :meth:`admit`. May take long: keep it off the event loop.
            resource_id: Of the instance that it is about.
            given: The members that were given now; others are sealed already. None: all were.
        """
        document = orjson.loads(payload)
        for member, column in self.secret_members.items():
            if document.get(member) is not None and (given is None or member in given):
                kept = self.kept_of(column, document[member])
                document[member] = self._seal().seal(kept, self.purpose(column, resource_id))
        return orjson.dumps(document)

    def is_plain(self, column: str, kept: str) -> bool:
        """Whether it was taken in before 0.2, which did not seal what only a creation has."""
        return column not in self.resource.update.model_fields and not Sealer.is_sealed(kept)

    def _seal(self) -> Sealer:
        if self._sealer is None:
            raise ConfigurationError(f"resource {self.resource.name}: nothing to seal its secrets with")
        return self._sealer()

    def purpose(self, column: str, resource_id: UUID) -> str:
        """What a write-only member is sealed for."""
        return f"{self.resource.name}.{column}/{resource_id}"

    # ---- in the worker -----------------------------------------------------------------

    def apply(self, work: Work, current: Row | None) -> Change:
        """What ``work`` makes of the instance ``current`` (None: there is none).

        Raises:
            Refusal: A business rule forbids it; final, with the status that a caller would see.
            Unfamiliar: The payload was accepted by a version with another schema.
        """
        self.check_role(work.principal, work.operation.action)
        if current is not None:
            self.authorize(work.principal, work.operation.action, current)
        if work.operation is Operation.CREATE:
            return self._created(work, current)
        if current is None or not self.belongs(current, work.parent_id):
            raise self.absent()
        if work.if_match is not None and work.if_match != current["version"]:
            raise PreconditionFailed(
                f"The {self.resource.singular} is at version {current['version']}",
                current_version=current["version"],
            )
        if work.operation is Operation.DELETE:
            return Change(Effect.DELETE, None, None, None)
        if work.operation is Operation.READ:
            return self._change(Effect.NONE, current)
        if work.operation is Operation.REPLACE:
            document = self._accepted(self.resource.update, work.payload or "")
            values = self.replaced(current, document)
        else:
            document = self._patched(current, work.payload or "")
            values = document.model_dump()
        values |= self._secrets(work, document, current)
        after = {**current, **values, "version": current["version"] + 1, "updated_at": work.now}
        after |= self.derived(current, after, work.now)
        self.check(current, after)
        return self._change(Effect.UPDATE, after)

    def check_role(self, principal: Principal, action: Action) -> None:
        """Refuse what the role may not do to any instance.

        Raises:
            Forbidden: The role may not.
        """
        if reach_of(self.resource.permissions, principal.role, action) is None:
            raise self._forbidden(principal, action)

    def authorize(self, principal: Principal, action: Action, current: Row) -> None:
        """Refuse what the role or the ownership forbids.

        Args:
            principal: Who asks.
            action: To do what.
            current: The instance, or at least its ``owner_id``.

        Raises:
            NotFound: The instance is somebody else's and not visible to this principal.
            Forbidden: Visible, but this action is not granted.
        """
        if not may(self.resource.permissions, principal, Action.READ, current["owner_id"]):
            raise self.absent()
        self.authorize_for(principal, action, current["owner_id"])

    def absent(self) -> NotFound:
        """The refusal of an instance that is not there or is hidden: who asks cannot tell which."""
        return NotFound(f"There is no such {self.resource.singular}")

    def authorize_for(self, principal: Principal, action: Action, owner_id: UUID | None) -> None:
        """Refuse what the role forbids to do for ``owner_id``, whose the instance is or will be.

        Raises:
            Forbidden: This action is not granted.
        """
        if not may(self.resource.permissions, principal, action, owner_id):
            raise self._forbidden(principal, action)

    def _forbidden(self, principal: Principal, action: Action) -> Forbidden:
        return Forbidden(f"The role {principal.role} may not {action} {self.resource.name}")

    def belongs(self, current: Row, parent_id: UUID | None) -> bool:
        """Whether an instance is part of the parent that was named (or the resource has no parent)."""
        column = self.resource.parent_column
        return column is None or current[column] == parent_id

    def seen(self, row: Row) -> bytes:
        """The instance as JSON text, by the read schema; what a newer version put in beside is left out."""
        names = self.resource.read.model_fields
        values = {name: row[name] for name in names}
        document = self.resource.read.model_validate(values, by_name=True, extra="ignore")
        return document.model_dump_json(by_alias=True).encode()

    def _created(self, work: Work, current: Row | None) -> Change:
        if current is not None:
            raise Conflict(f"The {self.resource.singular} {work.resource_id} exists already")
        owner_id = work.owner_id or work.principal.id
        self.authorize_for(work.principal, Action.WRITE, owner_id)
        document = self._accepted(self.resource.create, work.payload or "")
        after = {
            "id": work.resource_id,
            **self.resource.defaults,
            **document.model_dump(),
            **self._secrets(work, document, None),
            "version": work.buried_version + 1,
            "owner_id": owner_id,
            "created_at": work.now,
            "updated_at": work.now,
        }
        if self.resource.parent_column is not None:
            after[self.resource.parent_column] = work.parent_id
        after |= self.derived(None, after, work.now)
        self.check(None, after)
        return self._change(Effect.INSERT, after)

    def _change(self, effect: Effect, row: Row) -> Change:
        return Change(effect, row, self.seen(row), row["version"] if self.resource.has_version else None)

    def _secrets(self, work: Work, document: BaseModel, current: Row | None) -> dict[str, Any]:
        """What the table keeps of write-only members: opened where they are given, else as it was."""
        values: dict[str, Any] = {}
        for column in self.resource.write_only:
            if column in document.model_fields_set:
                sealed = getattr(document, column)
                if sealed is None:
                    values[column] = None
                    continue
                if self.is_plain(column, sealed):
                    values[column] = self.kept_of(column, sealed)
                    continue
                values[column] = self._seal().open(sealed, self.purpose(column, work.resource_id))
            elif current is not None:
                values[column] = current[column]
        return values

    def _patched(self, current: Row, payload: str) -> BaseModel:
        schema = self.resource.update
        names = [name for name in schema.model_fields if name not in self.resource.write_only]
        present = schema.model_construct(set(names), **{name: current[name] for name in names})
        # A column's text where the schema has an enum writes the same JSON: no reason to warn.
        document = orjson.loads(present.model_dump_json(by_alias=True, warnings=False, exclude_unset=True))
        merged = merge_patch.apply(document, orjson.loads(payload))
        return self._accepted(schema, orjson.dumps(merged))

    def _accepted(self, schema: type[BaseModel], body: bytes | str) -> BaseModel:
        """Validate what was valid at the door: a member that is not known is known to another version."""
        try:
            return _validated(sealed_form(schema, self.resource.write_only), body)
        except Invalid as invalid:
            cause = invalid.__cause__
            if isinstance(cause, ValidationError) and any(one["type"] == _EXTRA for one in cause.errors()):
                raise Unfamiliar(
                    "the payload has members that this version does not know; a worker of another may take it"
                ) from invalid
            raise


def _validated(schema: type[BaseModel], body: bytes | str) -> BaseModel:
    """Validate JSON text strictly: no coercion between JSON types, members only by their wire names."""
    try:
        return schema.model_validate_json(body, strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        raise refusal(error) from error


_EXTRA = "extra_forbidden"
