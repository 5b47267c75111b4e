"""What is on record as refused, and what is not."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from api_shim.routes.refusals import Refusals
from models.errors import NotFound, Refusal, Unavailable

REQUEST = SimpleNamespace(
    parameters={"id": "one"}, principal=SimpleNamespace(id=None, email="ada@example.org"), id="r"
)


class Trail:
    """One in memory."""

    def __init__(self) -> None:
        self.written: list[tuple[Any, ...]] = []

    def write(self, *entry: Any) -> None:
        self.written.append(entry)


class Threads:
    """Calls at once."""

    async def call(self, function: Callable[..., None], *arguments: Any) -> None:
        function(*arguments)


def recorded(refusal: Refusal) -> list[tuple[Any, ...]]:
    trail = Trail()

    async def refuse() -> None:
        async with Refusals(cast(Any, trail), cast(Any, Threads())).recorded("act", cast(Any, REQUEST)):
            raise refusal

    with pytest.raises(type(refusal)):
        asyncio.run(refuse())
    return trail.written


def test_refusal_is_on_record() -> None:
    refusal = NotFound("There is none")
    (entry,) = recorded(refusal)
    assert entry[:3] == ("act", "one", refusal)


def test_want_of_room_is_not() -> None:
    assert recorded(Unavailable("Too much at once", retry_after=1)) == []
