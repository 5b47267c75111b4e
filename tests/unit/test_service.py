"""The rules that every resource shares, and those of entities. No database."""

import warnings
from dataclasses import replace
from datetime import UTC, datetime
from itertools import product
from typing import Any

import orjson
import pytest

from models.errors import Conflict, Forbidden, Invalid, NotFound, PreconditionFailed, Unfamiliar
from models.identity.principals import Principal, Role
from models.ids import new_id
from models.job import Operation
from models.resources import entities
from models.resources.entities import Status
from models.schema import Schema
from models.service import Admitted, Change, Effect, ResourceService, Row, Work
from tests.kit import tickets

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
ADA = Principal(new_id(), "ada@example.org", Role.USER)
BOB = Principal(new_id(), "bob@example.org", Role.USER)
GUEST = Principal(new_id(), "guest@example.org", Role.GUEST)
ADMIN = Principal(new_id(), "admin@example.org", Role.ADMIN)
ENTITY = new_id()

_WITH_BODY = (Operation.CREATE, Operation.REPLACE, Operation.PATCH)
service = entities.RESOURCE.service(entities.RESOURCE)
ticket_service = ResourceService(tickets.RESOURCE)


def row(**more: Any) -> dict[str, Any]:
    return {
        "id": ENTITY,
        "name": "a thing",
        "description": "described",
        "status": "ACTIVE",
        "metadata": {"a": 1, "b": {"c": None}},
        "version": 3,
        "owner_id": ADA.id,
        "created_at": NOW,
        "updated_at": NOW,
    } | more


def apply(operation: Operation, data: Any = None, current: Row | None = None, **more: Any) -> Change:
    work: dict[str, Any] = {
        "operation": operation,
        "resource_id": ENTITY,
        "payload": None if data is None else orjson.dumps(data).decode(),
        "if_match": None,
        "principal": ADA,
        "now": NOW,
    }
    return service.apply(Work(**(work | more)), current)


def after(change: Change) -> Row:
    assert change.row is not None
    return change.row


# ---- at the door ---------------------------------------------------------------------


def admitted(operation: Operation, data: Any) -> Admitted:
    return service.admit(operation, orjson.dumps(data))


def refused_members(operation: Operation, data: Any) -> list[str]:
    with pytest.raises(Invalid) as caught:
        admitted(operation, data)
    return [detail.field for detail in caught.value.details]


def test_client_may_choose_the_id_of_a_new_instance() -> None:
    chosen = new_id()
    found = admitted(Operation.CREATE, {"id": str(chosen), "name": "x"})
    assert found.supplied_id == chosen
    assert found.payload is not None
    assert orjson.loads(found.payload) == {"name": "x"}


@pytest.mark.parametrize("bad", [1, None, "", "x", {}, new_id().hex])
def test_chosen_id_must_be_a_uuid(bad: Any) -> None:
    assert refused_members(Operation.CREATE, {"id": bad, "name": "x"}) == ["id"]


@pytest.mark.parametrize("operation", [Operation.CREATE, Operation.REPLACE, Operation.PATCH])
@pytest.mark.parametrize("member", ["version", "ownerId", "createdAt", "updatedAt", "owner_id", "nonsense"])
def test_members_that_are_not_the_clients_are_refused_by_name(operation: Operation, member: str) -> None:
    assert refused_members(operation, {"name": "x", member: 1}) == [member]


@pytest.mark.parametrize("operation", [Operation.REPLACE, Operation.PATCH])
def test_id_cannot_be_changed(operation: Operation) -> None:
    assert refused_members(operation, {"name": "x", "id": str(ENTITY)}) == ["id"]


BAD_VALUES = [
    ("name", ""),
    ("name", "x" * 256),
    ("name", 7),
    ("name", "   "),
    ("name", "line\nbreak"),
    ("name", {"a": 1}),
    ("status", {}),
    ("description", {"a": {"b": 1}}),
    ("status", "active"),
    ("status", 1),
    ("description", 5),
    ("metadata", []),
    ("metadata", "text"),
]


@pytest.mark.parametrize(
    ("operation", "member", "value"),
    [(operation, *bad) for operation in _WITH_BODY for bad in BAD_VALUES],
)
def test_value_that_does_not_fit_is_refused_with_its_member(
    operation: Operation, member: str, value: Any
) -> None:
    assert member in refused_members(operation, {"name": "fine", member: value})[0]


def test_new_entity_cannot_be_archived() -> None:
    assert refused_members(Operation.CREATE, {"name": "x", "status": "ARCHIVED"}) == ["status"]


def test_patch_cannot_remove_what_is_required() -> None:
    assert refused_members(Operation.PATCH, {"name": None}) == ["name"]


def test_patch_may_leave_out_what_is_required_and_remove_what_is_not() -> None:
    assert admitted(Operation.PATCH, {"description": None, "metadata": {"a": None}}).supplied_id is None


@pytest.mark.parametrize("operation", [Operation.CREATE, Operation.REPLACE, Operation.PATCH])
@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'"x"', b'{"name":"a","name":"b"}', b"{"])
def test_body_that_is_no_plain_object_is_refused(operation: Operation, body: bytes) -> None:
    with pytest.raises(Invalid):
        service.admit(operation, body)


@pytest.mark.parametrize("operation", [Operation.DELETE, Operation.READ])
def test_delete_and_read_take_no_body(operation: Operation) -> None:
    assert service.admit(operation, b" ").payload is None
    with pytest.raises(Invalid):
        service.admit(operation, b"{}")


def test_refusal_does_not_repeat_the_value() -> None:
    with pytest.raises(Invalid) as caught:
        admitted(Operation.CREATE, {"name": ["s3cret"]})
    assert "s3cret" not in str(caught.value.problem())


def test_members_are_named_as_the_client_spells_them() -> None:
    with pytest.raises(Invalid) as caught:
        ticket_service.admit(Operation.CREATE, b'{"number": "1", "dueOn": "tomorrow"}')
    assert [detail.field for detail in caught.value.details] == ["dueOn"]
    with pytest.raises(Invalid):
        ticket_service.admit(Operation.CREATE, b'{"number": "1", "due_on": "2026-01-01"}')


# ---- in the worker -------------------------------------------------------------------

LEGAL = {
    (Status.DRAFT, Status.ACTIVE),
    (Status.DRAFT, Status.ARCHIVED),
    (Status.ACTIVE, Status.INACTIVE),
    (Status.ACTIVE, Status.ARCHIVED),
    (Status.INACTIVE, Status.ACTIVE),
    (Status.INACTIVE, Status.ARCHIVED),
} | {(status, status) for status in Status}


@pytest.mark.parametrize("operation", [Operation.PATCH, Operation.REPLACE])
@pytest.mark.parametrize(("old", "new"), list(product(Status, Status)))
def test_status_moves_only_as_the_contract_says(operation: Operation, old: Status, new: Status) -> None:
    data = {"name": "x", "status": new}
    if (old, new) in LEGAL:
        assert after(apply(operation, data, row(status=str(old))))["status"] == new
    else:
        with pytest.raises(Conflict, match=f"from {old} to {new}"):
            apply(operation, data, row(status=str(old)))


def test_put_replaces_everything_but_keeps_an_unnamed_status() -> None:
    changed = after(apply(Operation.REPLACE, {"name": "new"}, row()))
    assert (changed["name"], changed["description"], changed["metadata"]) == ("new", None, None)
    assert changed["status"] == "ACTIVE"


def test_patch_merges_and_leaves_the_rest() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        changed = after(apply(Operation.PATCH, {"metadata": {"a": None, "d": [1]}}, row()))
    assert changed["metadata"] == {"b": {"c": None}, "d": [1]}
    assert (changed["name"], changed["description"]) == ("a thing", "described")


def test_patch_that_leads_to_an_invalid_document_is_refused() -> None:
    with pytest.raises(Invalid):
        apply(Operation.PATCH, {"name": {"a": 1}}, row())


@pytest.mark.parametrize("operation", [Operation.PATCH, Operation.REPLACE])
def test_change_counts_the_version_and_keeps_owner_and_birth(operation: Operation) -> None:
    later = datetime(2027, 1, 1, tzinfo=UTC)
    change = apply(operation, {"name": "x"}, row(), now=later, principal=ADMIN)
    changed = after(change)
    assert (change.effect, change.version, changed["version"]) == (Effect.UPDATE, 4, 4)
    assert (changed["owner_id"], changed["created_at"], changed["updated_at"]) == (ADA.id, NOW, later)


def test_creation_belongs_to_its_creator_and_begins_at_one() -> None:
    change = apply(Operation.CREATE, {"name": "x"})
    assert (change.effect, change.version) == (Effect.INSERT, 1)
    assert (after(change)["owner_id"], after(change)["status"], after(change)["id"]) == (
        ADA.id,
        "DRAFT",
        ENTITY,
    )


def test_creation_after_a_deletion_continues_the_versions() -> None:
    assert apply(Operation.CREATE, {"name": "x"}, buried_version=7).version == 8


def test_creation_over_ones_own_instance_is_a_conflict() -> None:
    with pytest.raises(Conflict):
        apply(Operation.CREATE, {"name": "x"}, row())


@pytest.mark.parametrize("operation", [Operation.PATCH, Operation.REPLACE, Operation.DELETE, Operation.READ])
def test_missing_instance_is_404(operation: Operation) -> None:
    with pytest.raises(NotFound):
        apply(operation, {"name": "x"})


@pytest.mark.parametrize("operation", [Operation.PATCH, Operation.REPLACE, Operation.DELETE, Operation.READ])
def test_job_of_a_hidden_instance_fails_in_the_words_of_a_missing_one(operation: Operation) -> None:
    with pytest.raises(NotFound) as missing:
        apply(operation, {"name": "x"}, principal=BOB)
    with pytest.raises(NotFound) as hidden:
        apply(operation, {"name": "x"}, row(), principal=BOB)
    assert hidden.value.problem("r") == missing.value.problem("r")


@pytest.mark.parametrize("operation", [Operation.PATCH, Operation.REPLACE, Operation.DELETE, Operation.READ])
@pytest.mark.parametrize("if_match", [1, 2, 4])
def test_other_version_than_demanded_is_412_with_the_current_one(operation: Operation, if_match: int) -> None:
    with pytest.raises(PreconditionFailed) as caught:
        apply(operation, {"name": "x"}, row(), if_match=if_match)
    assert caught.value.problem()["currentVersion"] == 3
    assert apply(operation, {"name": "x"}, row(), if_match=3) is not None


def test_delete_leaves_nothing_and_read_changes_nothing() -> None:
    deleted, read = apply(Operation.DELETE, None, row()), apply(Operation.READ, None, row())
    assert (deleted.effect, deleted.row, deleted.result, deleted.version) == (Effect.DELETE, None, None, None)
    assert (read.effect, read.version) == (Effect.NONE, 3)


@pytest.mark.parametrize(
    ("principal", "operation", "refusal"),
    [
        (BOB, Operation.READ, NotFound),
        (BOB, Operation.PATCH, NotFound),
        (BOB, Operation.DELETE, NotFound),
        (GUEST, Operation.PATCH, Forbidden),
        (GUEST, Operation.DELETE, Forbidden),
        (GUEST, Operation.READ, None),
        (ADMIN, Operation.PATCH, None),
        (ADMIN, Operation.DELETE, None),
        (ADA, Operation.DELETE, None),
    ],
)
def test_ownership_and_role_decide(
    principal: Principal, operation: Operation, refusal: type[Exception] | None
) -> None:
    if refusal is None:
        apply(operation, {"name": "x"}, row(), principal=principal)
        return
    with pytest.raises(refusal):
        apply(operation, {"name": "x"}, row(), principal=principal)


def test_guest_creates_nothing() -> None:
    with pytest.raises(Forbidden):
        apply(Operation.CREATE, {"name": "x"}, principal=GUEST)


@pytest.mark.parametrize("operation", _WITH_BODY)
def test_payload_of_another_version_is_left_to_a_worker_of_that(operation: Operation) -> None:
    current = None if operation is Operation.CREATE else row()
    with pytest.raises(Unfamiliar, match="a worker of another may take it"):
        apply(operation, {"name": "x", "novelty": 1}, current)


def test_payload_that_is_wrong_in_a_member_that_is_known_is_refused() -> None:
    with pytest.raises(Invalid):
        apply(Operation.CREATE, {"name": 1})


def test_what_a_newer_version_put_into_a_column_is_left_out_for_the_reader() -> None:
    class Address(Schema):
        town: str

    class Seen(Schema):
        note: Address

    reader = ResourceService(replace(tickets.RESOURCE, read=Seen))
    assert reader.seen({"note": {"town": "Ulm", "novelty": 1}}) == b'{"note":{"town":"Ulm"}}'


def test_callers_see_an_instance_in_wire_spelling() -> None:
    assert orjson.loads(service.seen(row())) == {
        "id": str(ENTITY),
        "name": "a thing",
        "description": "described",
        "status": "ACTIVE",
        "metadata": {"a": 1, "b": {"c": None}},
        "version": 3,
        "ownerId": str(ADA.id),
        "createdAt": "2026-01-02T03:04:05.678901Z",
        "updatedAt": "2026-01-02T03:04:05.678901Z",
    }
