"""Routing: literals, parameters, and what is refused."""

import pytest

from api_shim.web.http import Request, Response
from api_shim.web.router import Route, Router
from models.errors import MethodNotAllowed, NotFound


async def _handle(request: Request) -> Response:
    return Response(200)


def _route(method: str, path: str) -> Route:
    return Route(method=method, path=path, handle=_handle, operation_id=path, summary="", tag="")


ROUTER = Router(
    [
        _route("GET", "/things"),
        _route("POST", "/things"),
        _route("GET", "/things/{id}"),
        _route("GET", "/things/special"),
        _route("POST", "/things/{id}/cancel"),
    ]
)


@pytest.mark.parametrize(
    ("method", "path", "found", "parameters"),
    [
        ("GET", "/things", "/things", {}),
        ("GET", "/things/7", "/things/{id}", {"id": "7"}),
        ("GET", "/things/a%20b", "/things/{id}", {"id": "a b"}),
        ("GET", "/things/special", "/things/special", {}),
        ("POST", "/things/7/cancel", "/things/{id}/cancel", {"id": "7"}),
        ("HEAD", "/things/7", "/things/{id}", {"id": "7"}),
        ("GET", "/things/%2F", "/things/{id}", {"id": "/"}),
    ],
)
def test_path_leads_to_its_route(method: str, path: str, found: str, parameters: dict[str, str]) -> None:
    route, given = ROUTER.find(method, path)
    assert (route.path, dict(given)) == (found, parameters)


@pytest.mark.parametrize(
    "path", ["", "/", "/thing", "/things/", "/things//cancel", "/things/7/x", "//things"]
)
def test_unknown_path_is_404(path: str) -> None:
    with pytest.raises(NotFound):
        ROUTER.find("GET", path)


def test_wrong_method_is_405_and_says_which_are_right() -> None:
    with pytest.raises(MethodNotAllowed) as refused:
        ROUTER.find("DELETE", "/things")
    assert refused.value.allow == ("GET", "HEAD", "POST")


def test_a_route_cannot_be_declared_twice() -> None:
    with pytest.raises(ValueError, match="twice"):
        Router([_route("GET", "/a"), _route("GET", "/a")])
