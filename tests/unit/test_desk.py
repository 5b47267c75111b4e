"""What the desk makes of upstream messages about parts and secrets. No broker, no ledger."""

import json
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from consumers.callers import Callers
from consumers.desk import Desk
from consumers.envelope import Arrival
from models.errors import Refusal
from models.identity.principals import Principal, Role
from models.identity.sealing import Sealer
from models.ids import lane_key, new_id
from models.registry import discover

ADMIN = Principal(new_id(), "admin@example.org", Role.ADMIN)
PARENT, PART = new_id(), new_id()
SEALER = Sealer({"own": b"k" * 32})


class OneCaller:
    """Everybody is the admin."""

    def of(self, arrival: Arrival) -> Principal:
        return ADMIN


desk = Desk(cast(Callers, OneCaller()), discover(sealer=lambda: SEALER), b"k" * 32)


def arrival(routing_key: str, body: Any = None, **headers: Any) -> Arrival:
    return Arrival(
        routing_key=routing_key,
        body=b"" if body is None else json.dumps(body).encode(),
        properties={"message_id": "m-1", "content_type": "application/json"},
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        arrived_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


NOTE = {"type": "note", "value": 1}


def test_part_queues_in_its_parents_lane() -> None:
    made = desk.submission(arrival("related.create", NOTE, parent_id=str(PARENT)))
    deleted = desk.submission(arrival("related.delete", parent_id=str(PARENT), resource_id=str(PART)))
    assert (made.parent_id, deleted.parent_id, deleted.resource_id) == (PARENT, PARENT, PART)
    assert {made.lane, deleted.lane} == {lane_key("entities", PARENT)}


def test_request_for_another_parent_is_another_request() -> None:
    one, same, other = (
        desk.submission(arrival("related.create", NOTE, parent_id=str(parent))).fingerprint
        for parent in (PARENT, PARENT, new_id())
    )
    assert one == same != other


@pytest.mark.parametrize(
    ("message", "word"),
    [
        (arrival("related.create", NOTE), "parent"),
        (arrival("related.delete", resource_id=str(PART)), "parent"),
        (arrival("related.create", NOTE, parent_id="1"), "parent-id"),
        (arrival("related.create", NOTE, parent_id=7), "parent-id"),
        (arrival("entities.create", {"name": "x"}, parent_id=str(PARENT)), "no parent"),
        (
            arrival("related.patch", NOTE, parent_id=str(PARENT), resource_id=str(PART), if_match=1),
            "no version",
        ),
    ],
)
def test_message_that_names_too_little_or_too_much_is_refused(message: Arrival, word: str) -> None:
    with pytest.raises(Refusal, match=word) as caught:
        desk.submission(message)
    assert caught.value.status == 400


def test_password_is_kept_as_a_sealed_hash() -> None:
    secret = "correct horse battery staple"
    submission = desk.submission(arrival("users.create", {"email": "a@example.org", "password": secret}))
    payload = json.loads(submission.payload or b"")
    assert secret not in payload["password"]
    opened = SEALER.open(payload["password"], f"users.password_hash/{submission.resource_id}")
    assert opened.startswith("$argon2id$")
