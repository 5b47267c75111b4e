"""A client of server-sent events, strict about the format (WHATWG HTML, 9.2)."""

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from typing import Any


@dataclass
class EventStream:
    """One stream.

    Args:
        port: Of the API, on this machine.
        path: Of the stream.
        token: Whose it is.
        last_event_id: Resume after this.
    """

    port: int
    path: str
    token: str
    last_event_id: int | None = None
    method: str = "GET"
    timeout: float = 20
    comments: int = 0
    retry: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.connection = HTTPConnection("127.0.0.1", self.port, timeout=self.timeout)
        headers = {"Authorization": f"Bearer {self.token}"}
        if self.last_event_id is not None:
            headers["Last-Event-ID"] = str(self.last_event_id)
        self.connection.request(self.method, self.path, headers=headers)
        self.answer: HTTPResponse = self.connection.getresponse()

    def events(self) -> Iterator[dict[str, Any]]:
        """The jobs in its events, until it ends."""
        identifier, data = None, []
        while line := self.answer.readline():
            text = line.decode().removesuffix("\n")
            name, _, value = text.partition(": ")
            if not text:
                if data:
                    job = json.loads("\n".join(data))
                    assert identifier == str(job["sequence"])
                    yield job
                identifier, data = None, []
            elif not name:
                self.comments += 1
            elif name == "retry":
                self.retry.append(int(value))
            elif name == "id":
                identifier = value
            else:
                assert name == "data", text
                data.append(value)

    def close(self) -> None:
        """Leave, without a word."""
        if self.connection.sock is not None:
            self.connection.sock.shutdown(socket.SHUT_RDWR)
        self.answer.close()
        self.connection.close()
