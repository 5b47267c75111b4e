"""An answer as it came over the socket, and what the contract would find wrong with it. No attacks."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import h11

CODES: Mapping[str, int] = {
    "Validation": 400,
    "Unauthorized": 401,
    "Forbidden": 403,
    "NotFound": 404,
    "MethodNotAllowed": 405,
    "Conflict": 409,
    "Gone": 410,
    "PreconditionFailed": 412,
    "PayloadTooLarge": 413,
    "UnsupportedMediaType": 415,
    "Unprocessable": 422,
    "RateLimit": 429,
    "Internal": 500,
    "Unavailable": 503,
}
"""Every error code of the contract, with its status."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,128}")
_LEAKS = re.compile(
    r"Traceback \(most|File \"/|site-packages|psycopg|sqlalchemy|pydantic|argon2|-----BEGIN|"
    r"\bSELECT\b.*\bFROM\b|\bINSERT INTO\b|waybill\.(jobs|users|entities)|correct horse"
)
_NEEDED = {429: "retry-after", 503: "retry-after", 401: "www-authenticate", 405: "allow"}


class MalformedReply(Exception):
    """What came back is no HTTP answer."""


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        status: 0 where the connection was closed without an answer.
        headers: By lower-case name; of a repeated one the last.
        body: Decoded from its transfer encoding.
        rest: What came after the answer on the same connection.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    rest: bytes = b""

    @property
    def is_closed(self) -> bool:
        """Whether the server closed the connection without a word."""
        return self.status == 0

    def json(self) -> Any:
        """The body's document.

        Raises:
            ValueError: It is none.
        """
        return json.loads(self.body)

    def faults(self) -> Iterator[str]:
        """What the contract says must not be, whatever was asked."""
        if self.is_closed:
            return
        if self.status >= 500 and self.status != 503:
            yield f"status {self.status}"
        if self.headers.get("x-content-type-options") != "nosniff":
            yield "no X-Content-Type-Options"
        if not _REQUEST_ID.fullmatch(self.headers.get("x-request-id", "")):
            yield f"X-Request-ID {self.headers.get('x-request-id')!r}"
        if self.status >= 400:
            if found := _LEAKS.search(self.body.decode("utf-8", "replace")):
                yield f"the body tells of the inside: {found[0]!r}"
            yield from self._refusal_faults()

    def _refusal_faults(self) -> Iterator[str]:
        needed = _NEEDED.get(self.status)
        if needed is not None and needed not in self.headers:
            yield f"a {self.status} without {needed}"
        if self.headers.get("content-type") != "application/problem+json":
            yield f"a refusal of type {self.headers.get('content-type')!r}"
            return
        try:
            document = self.json()
        except ValueError:
            if self.body or "content-length" not in self.headers:  # HEAD has the length and no body
                yield "a refusal that is no JSON"
            return
        missing = {"type", "title", "status", "error", "message", "requestId"} - set(document)
        if missing:
            yield f"a refusal without {', '.join(sorted(missing))}"
            return
        if CODES.get(document["error"]) != self.status or document["status"] != self.status:
            yield f"error {document['error']!r} and status {document['status']} in a {self.status}"
        if document["requestId"] != self.headers["x-request-id"]:
            yield "requestId is not X-Request-ID"
        if self.status == 412 and "currentVersion" not in document:
            yield "a 412 without currentVersion"
        if any(set(detail) != {"field", "reason"} for detail in document.get("details", ())):
            yield "details that are not field and reason"


CLOSED = Reply(0, {}, b"")


def read(received: bytes, method: str = "GET") -> Reply:
    """Read the first final answer on a connection, strictly.

    Args:
        received: Everything that came until the server closed or fell silent.
        method: Of the request: an answer to HEAD has no body.

    Raises:
        MalformedReply: It is not valid HTTP/1.1, or ends in its middle.
    """
    if not received:
        return CLOSED
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1024 * 1024)
    connection.send(
        h11.Request(method="HEAD" if method == "HEAD" else "GET", target="/", headers=[("Host", "x")])
    )
    connection.send(h11.EndOfMessage())
    connection.receive_data(received)
    response: h11.Response | None = None
    body = b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage) and response is not None:
                headers = {name.decode(): value.decode("latin-1") for name, value in response.headers}
                return Reply(response.status_code, headers, body, bytes(connection.trailing_data[0]))
            elif event in (h11.NEED_DATA, h11.PAUSED):
                connection.receive_data(b"")  # the server closed here
                if event is h11.PAUSED:
                    raise MalformedReply(f"an answer that never ends: {received[:200]!r}")
    except h11.RemoteProtocolError as error:
        raise MalformedReply(f"{error}: {received[:200]!r}") from error
