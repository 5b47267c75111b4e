"""What a resource declares: table, schemas, parent, service, permissions. Found by the registry."""

import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    ForeignKeyConstraint,
    Index,
    Integer,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID, ExcludeConstraint
from sqlalchemy.schema import SchemaItem
from sqlalchemy.sql.schema import ScalarElementColumnDefault

from models.effects import ThirdPartyEffect
from models.errors import ConfigurationError
from models.identity.principals import DEFAULT_PERMISSIONS, Permissions
from models.ids import lane_key
from models.list_place import SORTABLE, can_sort
from models.retry import RetryPolicy
from models.schema import is_text, is_write_only, takes_object
from models.service import ResourceService
from models.tables import metadata

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_LONGEST_IN_NAME = 54
"""So much of a table's name fits into an index's name, which has 63 bytes."""
_STORED_AS_WRITTEN = frozenset(
    {Uuid, UUID, String, Text, SmallInteger, Integer, BigInteger, Boolean, Date, JSONB}
)
PLATFORM_COLUMNS = ("id", "version", "owner_id", "created_at", "updated_at")
RESERVED_NAMES = frozenset({"jobs", "bulk", "callback-endpoints", "deliveries", "dead-letters", "stream"})


def resource_table(name: str, *items: SchemaItem, listed_by: str = "owner_id") -> Table:
    """A resource's table: your columns between the ones that the platform keeps.

    Adds ``id``, ``version``, ``owner_id``, ``created_at`` and ``updated_at``, and the index of the list
    that most callers read: their own instances, oldest or newest first. Other orders and filters that
    are to be quick on many rows want indexes of yours that end in the order's column and ``id``.

    Args:
        name: The table's name.
        items: Your columns, constraints and indexes (SQLAlchemy Core).
        listed_by: The column that lists are narrowed by: of parts, the one that holds their parent's id.
    """
    identifier = UUID(as_uuid=True)
    return Table(
        name,
        metadata,
        Column("id", identifier, primary_key=True),
        *items,
        Column("version", BigInteger, nullable=False, server_default=text("1")),
        Column("owner_id", identifier, nullable=False),
        Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
        Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
        Index(f"idx_{name[:_LONGEST_IN_NAME]}_list", listed_by, "created_at", "id"),
    )


@dataclass(frozen=True, slots=True)
class Parent:
    """Whose part an instance is: it belongs to the parent's owner, queues in its lane and goes with it.

    Attributes:
        resource: The parent's plural name; its instances have no parent themselves.
        column: Of the child's table; holds the parent's id, never changes, and is what the table is
            ``listed_by``.
    """

    resource: str
    column: str


@dataclass(frozen=True, kw_only=True)
class ResourceType:
    """One resource, declared in one file. Routes, AMQP keys, OpenAPI and migrations follow from it.

    Attributes:
        name: Plural; the URL segment, the first word of the AMQP routing key, the table's usual name.
        table: Made by :func:`resource_table`.
        create: Schema of a POST body. A member ``id`` is taken by the platform, beside yours.
        update: Schema of a PUT body, and of the document that a PATCH must lead to.
        read: Schema of what callers see. Where it has no ``version`` there is no ETag and no If-Match.
        parent: Served at ``/{parent}/{id}/{name}``, as part of an instance of another resource.
        instance: How messages name one instance; else made of the name.
        service: Business rules beyond the schemas.
        permissions: Which role may do what; the default gives users their own instances.
        searchable: Columns that ``?q=`` looks into.
        effects: Calls to third parties that follow from changes; see ``models/effects.py``.
        sortable: Columns (never null, seen by callers) that ``?sort=`` orders by: of a type that
            ``models/list_place.py`` can keep in a cursor.
        retry: How often and how soon a faulty attempt is repeated; None: as everybody's.
        is_cached: Whether reads may be answered from the cache: not where the table is written past the jobs.
    """

    name: str
    table: Table
    create: type[BaseModel]
    update: type[BaseModel]
    read: type[BaseModel]
    parent: Parent | None = None
    instance: str = ""
    service: type[ResourceService] = ResourceService
    permissions: Permissions = field(default_factory=lambda: DEFAULT_PERMISSIONS)
    searchable: tuple[str, ...] = ("name", "description")
    effects: tuple[ThirdPartyEffect, ...] = ()
    sortable: tuple[str, ...] = ("created_at", "name")
    retry: RetryPolicy | None = None
    is_cached: bool = True
    _adapters: dict[str, TypeAdapter[Any]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name in RESERVED_NAMES:
            raise ConfigurationError(f"resource name {self.name!r} is not usable: want {_NAME.pattern}")
        missing = [name for name in PLATFORM_COLUMNS if name not in self.table.columns]
        if missing:
            raise ConfigurationError(
                f"resource {self.name}: its table lacks {', '.join(missing)}; make it with resource_table()"
            )
        if self.parent is not None and self.parent.column not in self.table.columns:
            raise ConfigurationError(
                f"resource {self.name}: its table lacks its parent's {self.parent.column}"
            )
        for schema in (self.create, self.update, self.read):
            unknown = sorted(set(schema.model_fields) - set(self.table.columns.keys()))
            if unknown:
                raise ConfigurationError(f"resource {self.name}: no column for {', '.join(unknown)}")
        unsealable = sorted(name for name, info in self._given() if is_write_only(info) and not is_text(info))
        if unsealable:
            raise ConfigurationError(
                f"resource {self.name}: {', '.join(unsealable)}: a write-only member is sealed: let it be str"
            )
        shown = sorted(self.write_only & set(self.read.model_fields))
        if shown:
            raise ConfigurationError(
                f"resource {self.name}: its read schema shows {', '.join(shown)}: write-only"
            )
        unfit = [name for name in self.sorts.values() if not can_sort(self.table.columns[name].type)]
        if unfit:
            raise ConfigurationError(
                f"resource {self.name}: lists cannot be sorted by {', '.join(unfit)}: leave them out of "
                f"sortable=, or let them be {SORTABLE}"
            )
        names = [effect.name for effect in self.all_effects()]
        if len(set(names)) != len(names):
            raise ConfigurationError(f"resource {self.name}: two of its effects have one name")
        unset = [
            name for name, value in self.defaults.items() if value is None and _is_required(self.table, name)
        ]
        if unset:
            raise ConfigurationError(
                f"resource {self.name}: its create schema lacks {', '.join(unset)}: "
                "let the column be nullable, or give it a plain default="
            )

    def all_effects(self) -> Iterator[ThirdPartyEffect]:
        """Every effect, fallbacks included."""
        for effect in self.effects:
            yield from effect.chain()

    @property
    def singular(self) -> str:
        """How messages name one instance."""
        if self.instance:
            return self.instance
        return self.name[:-3] + "y" if self.name.endswith("ies") else self.name.removesuffix("s")

    @property
    def parent_column(self) -> str | None:
        """The column that holds the parent's id, where there is a parent."""
        return self.parent.column if self.parent is not None else None

    @cached_property
    def has_version(self) -> bool:
        """Whether callers see versions, and may demand one."""
        return "version" in self.read.model_fields

    @cached_property
    def read_fingerprint(self) -> str:
        """Names the shape of what callers see: what another release kept is not taken for its own."""
        schema = json.dumps(self.read.model_json_schema(mode="serialization"), sort_keys=True)
        return blake2b(schema.encode(), digest_size=6).hexdigest()

    @cached_property
    def reads_as_written(self) -> bool:
        """Whether what callers see of a row is the same before PostgreSQL has stored it and after.

        It pads ``CHAR``, rounds and scales ``NUMERIC``, moves a time into UTC. What is in doubt is not.
        """
        own = (self.table.columns[name] for name in self.read.model_fields if name not in PLATFORM_COLUMNS)
        return all(type(column.type) in _STORED_AS_WRITTEN and column.computed is None for column in own)

    @cached_property
    def sorts(self) -> dict[str, str]:
        """What ``?sort=`` takes: members of the read schema, and their columns."""
        fields = self.read.model_fields
        present = [name for name in self.sortable if name in fields and name in self.table.columns]
        return {fields[name].alias or name: name for name in present}

    @cached_property
    def searched(self) -> tuple[str, ...]:
        """The columns of the table that ``?q=`` looks into."""
        return tuple(name for name in self.searchable if name in self.table.columns)

    @cached_property
    def write_only(self) -> frozenset[str]:
        """Columns that callers set and never see: kept where a PUT or PATCH says nothing of them."""
        return frozenset(name for name, info in self._given() if is_write_only(info))

    def _given(self) -> list[tuple[str, FieldInfo]]:
        return [*self.create.model_fields.items(), *self.update.model_fields.items()]

    @cached_property
    def takes_object(self) -> frozenset[str]:
        """Columns of the update schema that a JSON object may fit: a patch of the others cannot set one."""
        schemas = {name: self.adapter(name).json_schema() for name in self.update.model_fields}
        return frozenset(name for name, one in schemas.items() if takes_object(one, one.get("$defs", {})))

    def lane(self, identifier: uuid.UUID, parent_id: uuid.UUID | None = None) -> int:
        """The lane of an instance: its own, or its parent's."""
        if self.parent is None or parent_id is None:
            return lane_key(self.name, identifier)
        return lane_key(self.parent.resource, parent_id)

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """What a new instance has in the columns that its create schema does not name."""
        kept = (*PLATFORM_COLUMNS, *([self.parent.column] if self.parent else []))
        own = [column for column in self.table.columns if column.name not in kept]
        return {
            str(column.name): column.default.arg
            if isinstance(column.default, ScalarElementColumnDefault)
            else None
            for column in own
            if column.name not in self.create.model_fields
        }

    @cached_property
    def folds(self) -> bool:
        """Whether successive jobs on an instance may be written as one row.

        Only where no constraint of the table could refuse a state in between: then what
        the database sees last is what it would have seen one by one.
        """
        if any(index.unique for index in self.table.indexes):
            return False
        of_parent = [self.parent.column] if self.parent is not None else []
        return not any(
            isinstance(item, UniqueConstraint | ExcludeConstraint)
            # The parent is checked in its lane, and never changes.
            or (isinstance(item, ForeignKeyConstraint) and list(item.column_keys) != of_parent)
            for item in self.table.constraints
        )

    def adapter(self, name: str) -> TypeAdapter[Any]:
        """The validator of one member of the update schema, for checking a patch member by member."""
        if name not in self._adapters:
            info = self.update.model_fields[name]
            annotation: Any = info.annotation
            if info.metadata:
                annotation = Annotated[info.annotation, *info.metadata]
            self._adapters[name] = TypeAdapter(annotation)
        return self._adapters[name]


def _is_required(table: Table, name: str) -> bool:
    """Whether the column takes no SQL null (a JSONB column keeps JSON's null instead)."""
    column = table.columns[name]
    return not column.nullable and not isinstance(column.type, JSONB)
