"""What a resource declares: table, schemas, service, permissions. The registry finds the declarations."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter
from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Table,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID
from sqlalchemy.schema import SchemaItem
from sqlalchemy.sql.schema import ScalarElementColumnDefault

from models.effects import ThirdPartyEffect
from models.errors import ConfigurationError
from models.identity.principals import DEFAULT_PERMISSIONS, Permissions
from models.service import ResourceService
from models.tables import metadata

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
PLATFORM_COLUMNS = ("id", "version", "owner_id", "created_at", "updated_at")
RESERVED_NAMES = frozenset({"jobs", "bulk", "callback-endpoints", "deliveries", "dead-letters", "stream"})


def resource_table(name: str, *items: SchemaItem) -> Table:
    """A resource's table: your columns between the ones that the platform keeps.

    Adds ``id``, ``version``, ``owner_id``, ``created_at`` and ``updated_at``.

    Args:
        name: The table's name.
        items: Your columns, constraints and indexes (SQLAlchemy Core).
    """
    identifier = UUID(as_uuid=True)
    return Table(
        name,
        metadata,
        Column("id", identifier, primary_key=True),
        *items,
        Column("version", BigInteger, nullable=False, server_default=text("1")),
        Column("owner_id", identifier, nullable=False, index=True),
        Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
        Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    )


@dataclass(frozen=True, kw_only=True)
class ResourceType:
    """One resource, declared in one file. Routes, AMQP keys, OpenAPI and migrations follow from it.

    Attributes:
        name: Plural; the URL segment, the first word of the AMQP routing key, the table's usual name.
        table: Made by :func:`resource_table`.
        create: Schema of a POST body. A member ``id`` is taken by the platform, beside yours.
        update: Schema of a PUT body, and of the document that a PATCH must lead to.
        read: Schema of what callers see.
        service: Business rules beyond the schemas.
        permissions: Which role may do what; the default gives users their own instances.
        searchable: Columns that ``?q=`` looks into.
        effects: Calls to third parties that follow from changes; see ``models/effects.py``.
    """

    name: str
    table: Table
    create: type[BaseModel]
    update: type[BaseModel]
    read: type[BaseModel]
    service: type[ResourceService] = ResourceService
    permissions: Permissions = field(default_factory=lambda: DEFAULT_PERMISSIONS)
    searchable: tuple[str, ...] = ("name", "description")
    effects: tuple[ThirdPartyEffect, ...] = ()
    _adapters: dict[str, TypeAdapter[Any]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name in RESERVED_NAMES:
            raise ConfigurationError(f"resource name {self.name!r} is not usable: want {_NAME.pattern}")
        missing = [name for name in PLATFORM_COLUMNS if name not in self.table.columns]
        if missing:
            raise ConfigurationError(
                f"resource {self.name}: its table lacks {', '.join(missing)}; make it with resource_table()"
            )
        for schema in (self.create, self.update, self.read):
            unknown = sorted(set(schema.model_fields) - set(self.table.columns.keys()))
            if unknown:
                raise ConfigurationError(f"resource {self.name}: no column for {', '.join(unknown)}")
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
        return self.name[:-3] + "y" if self.name.endswith("ies") else self.name.removesuffix("s")

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """What a new instance has in the columns that its create schema does not name."""
        own = [column for column in self.table.columns if column.name not in PLATFORM_COLUMNS]
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
        has_unique = any(index.unique for index in self.table.indexes)
        kinds = {type(item).__name__ for item in self.table.constraints}
        return not has_unique and not kinds & {
            "UniqueConstraint",
            "ForeignKeyConstraint",
            "ExcludeConstraint",
        }

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
