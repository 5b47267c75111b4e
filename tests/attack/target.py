"""What is attacked: a platform of its own, started by ``waybill up`` as users start it, on loopback."""

import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import psutil

from models.container import Container
from models.identity.principals import Role
from models.identity.users import hash_password
from models.settings import load_settings
from tests.attack.reply import Reply, read
from tests.kit.launched import Launched, launched_whole
from tests.kit.servers import temporary_data_directory

Who = Literal["user", "other", "guest", "admin"]
PASSWORD = "correct horse battery staple"
ENTITIES = "/api/v1/entities"
_SILENCE_SECONDS = 0.3
_PATIENCE_SECONDS = 40.0


@dataclass
class Target:
    """A running platform with a user of each role, an entity and a job of two of them.

    Attributes:
        port: Of the API.
        up: The launcher.
        container: Its database and keys, to stage what an attack needs.
        tokens: An access token for each user.
        places: What ``{…}`` in an attack's path stands for.
    """

    port: int
    up: Launched
    container: Container
    tokens: dict[Who, str] = field(default_factory=dict)
    users: dict[Who, UUID] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    _addresses: Iterator[int] = field(default_factory=lambda: count(2))

    def request(
        self,
        method: str,
        path: str,
        *,
        who: Who | None = "user",
        headers: Mapping[str, str | bytes] | Sequence[tuple[str, str | bytes]] = (),
        body: bytes | str | None = None,
        json_body: Any = None,
    ) -> Reply:
        """Send one valid HTTP request on a connection of its own."""
        for name, value in self.places.items():
            path = path.replace(f"{{{name}}}", value)
        given = list(headers.items() if isinstance(headers, Mapping) else headers)
        if json_body is not None:
            body = json.dumps(json_body)
        content = body.encode() if isinstance(body, str) else body
        names = {name.lower() for name, _ in given}
        if content is not None and "content-type" not in names:
            given.append(("Content-Type", "application/json"))
        if content is not None and "transfer-encoding" not in names:
            given.append(("Content-Length", str(len(content))))
        if who is not None and "authorization" not in names:
            given.append(("Authorization", f"Bearer {self.tokens[who]}"))
        lines = [f"{method} {path} HTTP/1.1".encode(), b"Host: waybill", b"Connection: close"]
        lines += [name.encode("latin-1") + b": " + _encoded(value) for name, value in given]
        return self.exchange(b"\r\n".join(lines) + b"\r\n\r\n" + (content or b""), method)

    def head(self, method: str, path: str, *lines: str, who: Who | None = "user") -> bytes:
        """The head of a request, to be sent as it is."""
        token = () if who is None else (f"Authorization: Bearer {self.tokens[who]}",)
        given = (f"{method} {path} HTTP/1.1", "Host: waybill", *token, *lines)
        return ("\r\n".join(given) + "\r\n\r\n").encode("latin-1")

    def exchange(self, data: bytes, method: str = "GET") -> Reply:
        """Send bytes; what came back until the server closed, or fell silent after an answer."""
        return read(self.exchange_raw(data), method)

    def exchange_raw(self, data: bytes) -> bytes:
        """Send bytes from an address of its own in 127.0.0.0/8, so that no lock on one meets another."""
        source = (f"127.66.{next(self._addresses) % 60_000 // 250}.{next(self._addresses) % 250 + 1}", 0)
        received = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10, source_address=source) as link:
            with suppress(BrokenPipeError, ConnectionResetError):  # it has answered and closed already
                link.sendall(data)
            link.settimeout(_PATIENCE_SECONDS)
            with suppress(TimeoutError, ConnectionResetError):
                while chunk := link.recv(65536):
                    received += chunk
                    link.settimeout(_SILENCE_SECONDS)
        return received

    def refusals(self) -> float:
        """How many refusals the platform has counted in its metrics."""
        total = 0.0
        text = self.request("GET", "/metrics", who=None).body.decode()
        for line in text.splitlines():
            name, _, value = line.rpartition(" ")
            if name.startswith(("waybill_invalid_requests_total{", "waybill_http_refusals_total{")):
                total += float(value)
        return total

    def footprint(self) -> tuple[int, int]:
        """Resident MiB and open descriptors of the process that serves."""
        (pid,) = self.up.processes()["api"][:1]
        process = psutil.Process(pid)
        return process.memory_info().rss // 2**20, process.num_fds()

    def create(self, who: Who, name: str) -> tuple[str, str]:
        """An entity that exists: its id, and the id of the job that made it."""
        made = self.request(
            "POST", ENTITIES, who=who, json_body={"name": name}, headers={"Prefer": "wait=20"}
        )
        if made.status != 201:
            raise AssertionError(f"the platform does not work: {made}")
        entity = made.json()
        jobs = self.request("GET", f"/api/v1/jobs?resourceId={entity['id']}", who=who)
        return entity["id"], jobs.json()["items"][0]["id"]


@contextmanager
def running_target(**settings: str) -> Iterator[Target]:
    """Start a platform and fill it with what the attacks need; nothing of it is left afterwards."""
    with (
        temporary_data_directory() as directory,
        launched_whole(directory, is_quiet=True, **{"WAYBILL_RATE_LIMITS": "off", **settings}) as up,
    ):
        up.wait_ready()
        container = Container(_settings(directory.path), role="attack", pool_size=2)
        try:
            target = Target(up.api_port, up, container)
            _furnish(target)
            yield target
        finally:
            container.close()


def _settings(data_dir: Path) -> Any:
    return load_settings(data_dir=data_dir)


def _furnish(target: Target) -> None:
    hashed = hash_password(PASSWORD)
    roles: dict[Who, Role] = {
        "user": Role.USER,
        "other": Role.USER,
        "guest": Role.GUEST,
        "admin": Role.ADMIN,
    }
    for who, role in roles.items():
        with target.container.database.transaction() as connection:
            user = target.container.users.add(connection, f"{who}@example.com", hashed, role)
        target.users[who] = user.id
        target.tokens[who] = target.container.tokens.issue(user)
    entity, job = target.create("user", "Ada")
    foreign, foreign_job = target.create("other", "Grace")
    target.places = {"entity": entity, "job": job, "foreign": foreign, "foreign_job": foreign_job}


def _encoded(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("latin-1")
