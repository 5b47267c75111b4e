"""The HTTP client of one third party: URL, headers, time-out, kept connections. Decides nothing."""

import socket
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from http.client import HTTPException
from threading import Timer

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util.connection import create_connection

from models.deliveries.delivery_policy import Answer
from models.effects import ServiceCall
from models.job import to_json
from models.settings import Service
from tasks.look_up import look_up
from tasks.webhook import MAX_ANSWER_BYTES, parse_retry_after

_CONNECT_SECONDS = 5.0


class _Deadline:
    """Ends what is read from a connection when time is up; beneath TLS, if there is any."""

    def __init__(self, owner: "_Plain") -> None:
        self.is_over = False
        self._owner = owner
        self._connection: socket.socket = owner.sock
        self._timer = Timer(owner.timeout or 0, self._end)
        self._timer.daemon = True

    def run(self) -> None:
        """From now on."""
        self._timer.start()

    def lift(self) -> None:
        """All was read."""
        self._timer.cancel()

    def _end(self) -> None:
        if self._owner.deadline is not self:  # all was read, and the connection serves another call by now
            return
        self.is_over = True
        with suppress(OSError):
            socket.socket.shutdown(self._connection, socket.SHUT_RDWR)


class _Plain(HTTPConnection):
    """Holds the whole answer to the time-out, which urllib3 counts anew at each read, and the name's look-up.

    Attributes:
        deadline: Of the answer that is read; whoever has read its body lifts it.
    """

    deadline: _Deadline

    def _new_conn(self) -> socket.socket:
        """To the first address that takes one, as urllib3 has it; the look-up has the time of one too."""
        ask = partial(socket.getaddrinfo, self._dns_host, self.port, type=socket.SOCK_STREAM)
        try:
            found = look_up(ask, self.timeout or 0)
        except TimeoutError as error:
            raise ConnectTimeoutError(self, "its name could not be looked up in time") from error
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        except (OSError, UnicodeError) as error:
            raise NewConnectionError(self, "its name could not be looked up") from error
        failure = OSError("no address")
        for *_, address in found:
            try:
                return create_connection(
                    (str(address[0]), self.port), self.timeout, self.source_address, self.socket_options
                )
            except OSError as error:
                failure = error
        if isinstance(failure, TimeoutError):
            raise ConnectTimeoutError(self, "no connection in time") from failure
        raise NewConnectionError(self, "no connection") from failure

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # as urllib3 does
        """As urllib3 has it.

        Raises:
            TimeoutError: Time was up. What had come until then may look like a whole head.
        """
        deadline = self.deadline = _Deadline(self)
        deadline.run()
        try:
            response = super().getresponse()
        except (OSError, HTTPException):
            deadline.lift()
            if deadline.is_over:
                raise TimeoutError from None
            raise
        if deadline.is_over:
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
            timeout=urllib3.Timeout(
                total=service.timeout_seconds, connect=min(service.timeout_seconds, _CONNECT_SECONDS)
            ),
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
        except urllib3.exceptions.HTTPError as error:
            # urllib3 takes a connection that is refused for one of too late
            is_late = isinstance(error, urllib3.exceptions.TimeoutError) and not isinstance(
                error, NewConnectionError
            )
            reason = "no answer in time" if is_late else f"cannot be reached ({type(error).__name__})"
            return Answer(None, f"{self.name}: {reason}")
        except ValueError:  # what the setting, or a resource, has made of URL and headers; it may hold a key
            return Answer(None, f"{self.name}: cannot be called as it is configured")
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
        deadline = connection.deadline if isinstance(connection, _Plain) else None
        try:  # with the last of it, the connection may serve another call already
            response.read(MAX_ANSWER_BYTES)
            if response.read(1):
                response.close()
        except urllib3.exceptions.HTTPError:
            response.close()  # its status stands
        finally:
            if deadline is not None:
                deadline.lift()
            response.release_conn()
