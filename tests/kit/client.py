"""A client of a running platform, as a user has one: logs in over HTTP, submits, polls."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import urllib3

from tests.kit.waiting import wait_until


@dataclass(frozen=True)
class Reply:
    """What came back. Header names are case-insensitive."""

    status: int
    headers: urllib3.HTTPHeaderDict
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Client:
    """Speaks HTTP to one platform.

    Args:
        url: Its root, without a path.
        token: An access token, if there is one already.
        timeout_seconds: How long it waits for an answer.
    """

    def __init__(self, url: str, token: str = "", *, timeout_seconds: float = 40) -> None:
        self.url = url
        self.token = token
        self._pool = urllib3.PoolManager(retries=False, timeout=timeout_seconds)

    def log_in(self, email: str, password: str) -> str:
        """Get a token, and use it from now on."""
        answer = self.call("POST", "/auth/login", {"email": email, "password": password})
        assert answer.status == 200, answer.body
        self.token = answer.json["accessToken"]
        return self.token

    def call(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Send a request; paths that do not begin with a slash are below ``/api/v1/``."""
        sent = {"Content-Type": "application/json"} if body is not None else {}
        if self.token:
            sent["Authorization"] = f"Bearer {self.token}"
        answer = self._pool.request(
            method,
            self.url + (path if path.startswith("/") else f"/api/v1/{path}"),
            body=None if body is None else json.dumps(body),
            headers={**sent, **(headers or {})},
        )
        return Reply(answer.status, answer.headers, answer.data)

    def outcome(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """Send a write and wait for what became of it."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.call(method, path, body, {"Prefer": "wait=30", **named})

    def job(self, job_id: str) -> dict[str, Any]:
        """A job as it stands."""
        answer = self.call("GET", f"jobs/{job_id}")
        assert answer.status == 200, answer.body
        return dict(answer.json)

    def done(self, job_id: str, timeout_seconds: float = 30) -> dict[str, Any]:
        """Wait until a job is done; the job."""
        return wait_until(
            lambda: (job := self.job(job_id)) and job["done"] and job,
            timeout_seconds=timeout_seconds,
            every_seconds=0.05,
            what=f"job {job_id} is done",
        )
