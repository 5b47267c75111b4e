"""A client that sends the examples of the OpenAPI document is understood at its first try."""

from collections.abc import Iterator
from typing import Any

import pytest

from models.identity.principals import Role
from tests.kit.api import Api, running_api

MISUNDERSTOOD = (400, 404, 405, 413, 415, 422, 500)


@pytest.fixture(scope="module")
def api(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(database_url, tmp_path_factory.mktemp("data")) as running:
        yield running


def test_every_example_of_a_request_is_understood(api: Api) -> None:
    document = api.request("GET", "/openapi.json").json
    entity, part = api.create(role=Role.ADMIN), ""
    assert api.request("POST", "/auth/mfa/enroll", role=Role.ADMIN).status == 200
    sent = 0
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            for media, content in operation.get("requestBody", {}).get("content", {}).items():
                known = _known(api, path, entity, part)
                answer = api.request(
                    method.upper(),
                    known,
                    role=Role.ADMIN,
                    json_body=content["example"],
                    headers={"Content-Type": media},
                )
                assert answer.status not in MISUNDERSTOOD, (method, path, content["example"], answer.body)
                assert str(answer.status) in operation["responses"], (method, path, answer.status)
                if method == "post" and path.endswith("/related"):
                    api.apply(answer.json["id"])
                    part = answer.json["resourceId"]
                sent += 1
    assert sent >= 18


def _known(api: Api, path: str, entity: Any, part: str) -> str:
    """The path with ids of what there is."""
    if path.startswith("/api/v1/users/"):
        identifier = str(api.users[Role.USER].id)
    elif path.startswith("/api/v1/jobs/"):
        identifier = api.request("GET", "/api/v1/jobs?limit=1", role=Role.ADMIN).json["items"][0]["id"]
    elif path.startswith("/api/v1/callback-endpoints/"):
        found = api.request("GET", "/api/v1/callback-endpoints", role=Role.ADMIN).json["items"]
        identifier = found[0]["id"]
    else:
        identifier = entity["id"]
    return path.replace("{id}", identifier).replace("{partId}", part)
