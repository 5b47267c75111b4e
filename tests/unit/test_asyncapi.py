"""The AsyncAPI document follows from the registry, and everything that it refers to is there."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from models.job import Operation
from models.registry import Registry, discover
from models.resources.entities import RESOURCE as ENTITIES
from tasks import asyncapi


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(asyncapi.document(discover())))
    return found


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for child in node.values():
            yield from references(child)
    elif isinstance(node, list):
        for child in node:
            yield from references(child)


def resolve(document: dict[str, Any], reference: str) -> Any:
    node: Any = document
    for part in reference.removeprefix("#/").split("/"):
        node = node[part]
    return node


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = list(references(document))
    assert found
    for reference in found:
        assert resolve(document, reference) is not None


@pytest.mark.parametrize("operation", list(Operation))
def test_each_operation_of_a_resource_is_received_on_its_routing_key(
    document: dict[str, Any], operation: Operation
) -> None:
    key = f"entities.{operation}"
    channel, received = document["channels"][key], document["operations"][key]

    assert channel["address"] == key
    assert channel["bindings"]["amqp"]["exchange"]["name"] == "waybill.intake"
    assert received["action"] == "receive"
    message = document["components"]["messages"][key]
    assert ("payload" in message) is (operation not in (Operation.DELETE, Operation.READ))
    assert ("resource-id" in message["headers"]["required"]) is (operation is not Operation.CREATE)


def test_answers_are_those_of_the_contract(document: dict[str, Any]) -> None:
    answers = {"accepted", "rejected", "succeeded", "failed", "cancelled", "expired", "dead"}
    assert set(document["channels"]["replies"]["messages"]) == {f"job.{answer}" for answer in answers}


def test_what_is_published_is_sent(document: dict[str, Any]) -> None:
    sent = {one["channel"]["$ref"] for one in document["operations"].values() if one["action"] == "send"}
    assert sent == {"#/channels/replies", "#/channels/events", "#/channels/dead-letters"}


def test_patch_takes_null_only_where_a_member_may_be_removed(document: dict[str, Any]) -> None:
    patch = document["components"]["schemas"]["entities.Patch"]
    assert "required" not in patch
    assert "anyOf" not in patch["properties"]["name"]
    assert {"type": "null"} in patch["properties"]["description"]["anyOf"]


def test_registry_without_resources_is_described_too() -> None:
    assert asyncapi.document(Registry([]))["channels"].keys() == {"replies", "events", "dead-letters"}
    assert "entities.create" in asyncapi.document(Registry([ENTITIES]))["channels"]
