"""What the load generator can drive at most: a bare ASGI app that reads the body and says 202."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.bench.load import Order, Outcome
from tests.bench.processes import free_port, is_listening, python, run, running, wait_until

Message = MutableMapping[str, Any]

ANSWER_BODY = b'{"state":"queued"}'
HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(ANSWER_BODY)).encode())]


async def app(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """Answer every HTTP request 202 once its body is in."""
    assert scope["type"] == "http"
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 202, "headers": HEADERS})
    await send({"type": "http.response.body", "body": ANSWER_BODY})


def send_load(order: Order) -> Outcome:
    """Run the load generator in a process of its own."""
    return Outcome(**json.loads(run(python("tests.bench.load", json.dumps(asdict(order))), {})))


def measure(requests: int, connections: int, logs: Path) -> Outcome:
    """Drive the bare app (uvicorn, one process, no access log) with ``requests`` requests."""
    port = free_port()
    argv = python(
        "uvicorn",
        "tests.bench.ceiling:app",
        *("--port", str(port), "--lifespan", "off", "--no-access-log", "--log-level", "warning"),
    )
    with running(argv, {}, logs / "ceiling.log"):
        wait_until(lambda: is_listening(port), "the bare ASGI app")
        return send_load(Order(port=port, path="/", requests=requests, connections=connections))
