"""The OpenAPI document is whole: every body has an example, and every example fits its schema."""

from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest

from api_shim.description.examples import PROBLEMS, example_of
from api_shim.description.openapi import describe
from api_shim.server import build
from models.container import Container
from models.settings import Settings


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    settings = Settings(
        _env_file=None,
        database_url="postgresql+psycopg://nobody:nothing@127.0.0.1:1/none",
        data_dir=tmp_path_factory.mktemp("data"),
    )
    container = Container(settings, role="test")
    edge = build(container, _Nobody())
    return describe(list(edge.app.router), container.registry)


class _Nobody:
    def jobs(self, accepted: Any) -> None:
        raise AssertionError

    def deliveries(self, ids: Any) -> None:
        raise AssertionError


def _bodies(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            where = f"{method} {path}"
            for media, content in operation.get("requestBody", {}).get("content", {}).items():
                yield f"{where} {media}", content
            for status, answer in operation["responses"].items():
                for media, content in answer.get("content", {}).items():
                    yield f"{where} {status} {media}", content


def test_every_body_has_an_example_that_fits_its_schema(document: dict[str, Any]) -> None:
    count = 0
    for where, content in _bodies(document):
        if "examples" in content:
            (reference,) = content["examples"].values()
            example = document["components"]["examples"][reference["$ref"].rpartition("/")[2]]["value"]
        else:
            example = content["example"]
        schema = {**content["schema"], "components": document["components"]}
        errors = [one.message for one in jsonschema_rs.Draft202012Validator(schema).iter_errors(example)]
        assert not errors, (where, example, errors)
        count += 1
    assert count > 300


def test_every_declared_error_has_its_own_example(document: dict[str, Any]) -> None:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            for status, answer in operation["responses"].items():
                problem = answer.get("content", {}).get("application/problem+json")
                if problem is not None:
                    assert PROBLEMS[int(status)]["status"] == int(status), (method, path)


def test_every_route_says_what_it_limits_and_needs(document: dict[str, Any]) -> None:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            where = f"{method} {path}"
            assert operation["summary"], where
            headers = [answer["headers"] for answer in operation["responses"].values()]
            assert all("X-Request-ID" in one for one in headers), where
            if path.startswith("/api/"):
                assert all("RateLimit" in one for one in headers), where
                assert "x-permission" in operation, where
                assert {"401", "403", "429"} <= set(operation["responses"]), where


@pytest.mark.parametrize(
    ("schema", "example"),
    [
        ({"type": "string", "examples": ["own"], "enum": ["other"]}, "own"),
        ({"type": "integer", "minimum": 3}, 3),
        ({"type": ["integer", "null"]}, None),
        ({"anyOf": [{"type": "array", "items": {"type": "boolean"}}, {"type": "string"}]}, [False]),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, None),
        (
            {"allOf": [{"$ref": "#/x/Part"}], "required": ["b"], "properties": {"b": {"const": 2}}},
            {"a": 1.5, "b": 2},
        ),
        ({"type": "object", "properties": {"optional": {"type": "string"}}}, {}),
    ],
)
def test_example_is_the_schemas_own_or_the_least_that_fits(schema: dict[str, Any], example: Any) -> None:
    part = {"type": "object", "required": ["a"], "properties": {"a": {"type": "number"}}}
    assert example_of(schema, {"Part": part}) == example
