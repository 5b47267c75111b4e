"""The HTTP client of one third party: URL, headers, time-out, kept connections. Decides nothing."""

import socket
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from http.client import HTTPException
from threading import Timer

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from models.deliveries.delivery_policy import Answer
from models.effects import ServiceCall
from models.job import to_json
from models.settings import Service
from tasks.webhook import MAX_ANSWER_BYTES, parse_retry_after


class _Deadline:
    """Ends what other threads read from a connection when time is up; beneath TLS, if there is any."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self.is_over = False
        self._connection = connection
        self._timer = Timer(seconds, self._end)
        self._timer.daemon = True
        self._timer.start()

    def lift(self) -> None:
        """All was read."""
        self._timer.cancel()

    def _end(self) -> None:
        self.is_over = True
        with suppress(OSError):
            socket.socket.shutdown(self._connection, socket.SHUT_RDWR)


class _Plain(HTTPConnection):
    """Holds the whole answer to the time-out, which urllib3 counts anew at each read.

    Attributes:
        deadline: Of the answer that is read; whoever has read its body lifts it.
    """

    deadline: _Deadline

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # as urllib3 does
        """As urllib3 has it.

        Raises:
            TimeoutError: Time was up. What had come until then may look like a whole head.
        """
        self.deadline = _Deadline(self.sock, self.timeout or 0)
        try:
            response = super().getresponse()
        except (OSError, HTTPException):
            self.deadline.lift()
            if self.deadline.is_over:
                raise TimeoutError from None
            raise
        if self.deadline.is_over:
            raise TimeoutError
        return response


class _Encrypted(HTTPSConnection, _Plain):
    """The same over TLS."""


class ServiceClient:
    """Calls one third party over kept connections, from any number of threads. Follows no redirects.

    Args:
        name: As ``WAYBILL_SERVICES`` has it.
        service: Where it is and how it is called.
        user_agent: Who we say we are.
        clock: What time it is, for a ``Retry-After`` that names a date.
    """

    def __init__(
        self,
        name: str,
        service: Service,
        *,
        user_agent: str,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.name = name
        self.at_once = service.at_once
        self._url = urllib3.util.parse_url(service.url)
        self._headers = {
            "User-Agent": user_agent,
            "Accept-Encoding": "identity",
            **{header: value.get_secret_value() for header, value in service.headers.items()},
        }
        self._clock = clock
        self._pool = urllib3.connection_from_url(
            service.url,
            maxsize=service.at_once,
            retries=False,
            timeout=urllib3.Timeout(total=service.timeout_seconds),
        )
        is_plain = self._pool.ConnectionCls is HTTPConnection
        self._pool.ConnectionCls = _Plain if is_plain else _Encrypted

    def send(self, call: ServiceCall, key: str) -> Answer:
        """Make ``call`` once under ``key``, by which the service tells a repetition.

        Returns:
            The answer. Whatever goes wrong on the way is one too; its text names the service at most.
        """
        headers = {**self._headers, "Idempotency-Key": key}
        body = None
        if call.json is not None:
            body = to_json(call.json)
            headers["Content-Type"] = "application/json"
        path = (self._url.path or "").rstrip("/") + call.path
        try:
            response = self._pool.urlopen(
                call.method,
                path,
                body=body,
                headers=headers,
                redirect=False,
                assert_same_host=False,
                preload_content=False,
            )
        except urllib3.exceptions.TimeoutError:
            return Answer(None, f"{self.name}: no answer in time")
        except urllib3.exceptions.HTTPError as error:
            return Answer(None, f"{self.name}: cannot be reached ({type(error).__name__})")
        self._finish(response)
        if 200 <= response.status <= 299:
            return Answer(response.status)
        wait = response.headers.get("retry-after")
        rest = None if wait is None else parse_retry_after(wait, self._clock())
        return Answer(response.status, f"{self.name} answered {response.status}", rest)

    @staticmethod
    def _finish(response: urllib3.BaseHTTPResponse) -> None:
        """Read what little there may be, so that the connection serves again; else close it."""
        connection = response.connection
        try:
            response.read(MAX_ANSWER_BYTES)
            if response.read(1):
                response.close()
        except urllib3.exceptions.HTTPError:
            response.close()  # its status stands
        finally:
            if isinstance(connection, _Plain):
                connection.deadline.lift()
            response.release_conn()
