"""Declaring a resource: what is refused at start, and what its instances are made of."""

from typing import Any, Literal
from uuid import UUID

import pytest
from pydantic import Field, JsonValue, create_model
from sqlalchemy import (
    ARRAY,
    CHAR,
    Boolean,
    Column,
    Computed,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    Numeric,
    PickleType,
    String,
    Table,
    Text,
    Uuid,
)
from sqlalchemy.dialects.postgresql import INET, JSONB

from models.errors import ConfigurationError
from models.identity.principals import Role
from models.ids import lane_key, new_id
from models.resource_type import Parent, ResourceType, resource_table
from models.schema import Schema
from models.tables import metadata


def table(*items: Any) -> Table:
    made = resource_table("parcels", *items)
    metadata.remove(made)
    return made


class Parcel(Schema):
    label: str


class ParcelWithFlag(Parcel):
    is_paid: bool


class SeenParcel(Parcel):
    id: UUID


LABEL = ("label", String)


def parcels(*items: Any, **more: Any) -> ResourceType:
    declared: dict[str, Any] = {
        "name": "parcels",
        "table": table(Column(*LABEL, nullable=False), *items),
        "create": Parcel,
        "update": Parcel,
        "read": SeenParcel,
    }
    return ResourceType(**(declared | more))


@pytest.mark.parametrize(
    "name", ["", "Parcels", "1st", "a b", "a/b", "jobs", "bulk", "dead-letters", "x" * 64]
)
def test_name_that_is_no_path_segment_or_taken_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="not usable"):
        parcels(name=name)


@pytest.mark.parametrize(("listed_by", "first"), [({}, "owner_id"), ({"listed_by": "label"}, "label")])
def test_table_has_the_index_of_its_list(listed_by: dict[str, str], first: str) -> None:
    made = resource_table("x" * 63, Column(*LABEL, nullable=False), **listed_by)
    metadata.remove(made)
    (index,) = made.indexes
    assert [column.name for column in index.columns] == [first, "created_at", "id"]
    assert len(str(index.name)) == 63


def test_table_that_lacks_the_platforms_columns_is_refused() -> None:
    bare = Table("parcels", MetaData(), Column("id", Uuid, primary_key=True), Column(*LABEL))
    with pytest.raises(ConfigurationError, match=r"lacks version, owner_id.*resource_table"):
        parcels(table=bare)


@pytest.mark.parametrize("role", ["create", "update", "read"])
def test_schema_member_without_a_column_is_refused(role: str) -> None:
    with pytest.raises(ConfigurationError, match="no column for is_paid"):
        parcels(**{role: ParcelWithFlag})


def test_write_only_member_that_is_shown_is_refused() -> None:
    class Secret(Parcel):
        label: str = Field(json_schema_extra={"writeOnly": True})

    with pytest.raises(ConfigurationError, match="read schema shows label"):
        parcels(create=Secret)


def test_write_only_member_that_is_no_text_is_refused() -> None:
    class Numbered(Parcel):
        label: int = Field(json_schema_extra={"writeOnly": True})  # type: ignore[assignment]

    with pytest.raises(ConfigurationError, match="label: a write-only member is sealed"):
        parcels(update=Numbered)


@pytest.mark.parametrize(
    "kind",
    [
        JSONB(),
        Interval(),
        LargeBinary(),
        ARRAY(Integer),
        INET(),
        Numeric(12, 2, asdecimal=False),
        Float(asdecimal=True),
        PickleType(),
    ],
)
def test_sortable_column_whose_values_are_no_places_is_refused(kind: Any) -> None:
    seen = create_model("Seen", __base__=SeenParcel, size=(Any, ...))
    column = Column("size", kind, nullable=False, default=1)
    with pytest.raises(ConfigurationError, match=r"sorted by size: .*sortable=.*text, whole numbers"):
        parcels(column, read=seen, sortable=("label", "size"))
    assert parcels(Column("size", kind, nullable=False, default=1), read=seen, sortable=("label",)).sorts == {
        "label": "label"
    }


def test_column_that_no_creation_can_fill_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"create schema lacks is_paid.*nullable.*default="):
        parcels(Column("is_paid", Boolean, nullable=False), update=ParcelWithFlag)


def test_column_absent_from_the_create_schema_starts_at_its_default_or_null() -> None:
    declared = parcels(
        Column("is_paid", Boolean, nullable=False, default=False),
        Column("remark", String),
        update=ParcelWithFlag,
    )
    assert declared.defaults == {"is_paid": False, "remark": None}


@pytest.mark.parametrize(
    ("items", "folds"),
    [
        ((), True),
        ((Column("number", String, unique=True),), False),
        ((Index("one_label", "label", unique=True),), False),
        ((Column("parent", Uuid, ForeignKey("entities.id")),), False),
    ],
)
def test_jobs_are_folded_only_where_no_constraint_could_refuse_a_state_in_between(
    items: tuple[Any, ...], *, folds: bool
) -> None:
    assert parcels(*items).folds is folds


def test_parent_that_the_table_does_not_name_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="lacks its parent's entity_id"):
        parcels(parent=Parent("entities", "entity_id"))


def test_reference_to_the_parent_does_not_keep_jobs_from_being_folded() -> None:
    column = Column("entity_id", Uuid, ForeignKey("entities.id"), nullable=False)
    declared = parcels(column, parent=Parent("entities", "entity_id"))
    assert declared.folds
    assert "entity_id" not in declared.defaults


def test_part_queues_in_its_parents_lane() -> None:
    declared = parcels(Column("entity_id", Uuid, nullable=False), parent=Parent("entities", "entity_id"))
    one, other, parent = new_id(), new_id(), new_id()
    assert declared.lane(one, parent) == declared.lane(other, parent) == lane_key("entities", parent)
    assert parcels().lane(one) == lane_key("parcels", one)


def test_version_is_the_callers_only_where_the_read_schema_shows_it() -> None:
    class Versioned(SeenParcel):
        version: int

    assert parcels(read=Versioned).has_version
    assert not parcels().has_version


@pytest.mark.parametrize(
    ("annotation", "takes"),
    [
        (str, False),
        (int | None, False),
        (list[str], False),
        (Literal["a"], False),
        (Role, False),
        (dict[str, int], True),
        (dict[str, int] | None, True),
        (JsonValue, True),
        (Parcel, True),
        (str | Parcel, True),
    ],
)
def test_objects_fit_only_members_that_may_be_one(annotation: Any, *, takes: bool) -> None:
    update = create_model("Update", __base__=Schema, label=(annotation, ...))
    assert (parcels(update=update).takes_object == {"label"}) is takes


@pytest.mark.parametrize(
    ("name", "singular"), [("entities", "entity"), ("tickets", "ticket"), ("sheep", "sheep")]
)
def test_messages_name_one_instance_in_the_singular(name: str, singular: str) -> None:
    assert parcels(name=name).singular == singular


@pytest.mark.parametrize(
    ("column", "is_so"),
    [
        (Column("label", Text), True),
        (Column("label", JSONB), True),
        (Column("label", CHAR(9)), False),
        (Column("label", Numeric(12, 2)), False),
        (Column("label", DateTime(timezone=True)), False),
        (Column("label", String, Computed("'a' || 'b'")), False),
    ],
)
def test_what_is_written_is_read_again_unless_postgresql_may_store_it_otherwise(
    column: Column[Any], is_so: bool
) -> None:
    declared = ResourceType(
        name="parcels",
        table=table(column),
        create=create_model("New", __base__=Schema),
        update=create_model("Changed", __base__=Schema),
        read=SeenParcel,
    )
    assert declared.reads_as_written is is_so
