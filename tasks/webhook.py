"""Sends one callback as Standard Webhooks 1.0 says, and reports what came of it. Decides and stores nothing.

Why not an HTTP client: they ask DNS themselves, and count their time-outs per read, so that a receiver that
trickles holds them for hours. Here the socket is ours (connected to a checked address, held to one deadline
over everything), TLS is the standard library's, signatures are ``standardwebhooks``', HTTP/1.1 is ``h11``'s.
"""

import re
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from time import monotonic

import h11
from standardwebhooks import Webhook

from models.deliveries.address_guard import CallbackUrl, Resolver, Target, check_url, resolve
from models.deliveries.address_ranges import IpAddress
from models.deliveries.delivery_policy import MAX_RETRY_AFTER, Answer
from models.errors import Invalid, Transient
from tasks.look_up import look_up

DEADLINE = timedelta(seconds=15)
MAX_ANSWER_BYTES = 64 * 1024
_CHUNK_BYTES = 16 * 1024


class WebhookSender:
    """Sends signed callbacks, one connection each, in any number of threads.

    A connection per callback costs a TLS handshake. In return nothing is shared between receivers, no stale
    connection is mistaken for a dead host, and every callback goes to an address checked for it.

    Args:
        version: Of Waybill, for ``User-Agent``.
        tls: Whom to trust; see ``trust``.
        allow_private: Development: ``http`` and private addresses pass.
        resolver: Asked once per callback that names its host.
        clock: What time it is, for a ``Retry-After`` that names a date.
        deadline: For one callback as a whole: DNS, connection, TLS, request and answer.
    """

    def __init__(
        self,
        *,
        version: str,
        tls: ssl.SSLContext,
        allow_private: bool = False,
        resolver: Resolver = socket.getaddrinfo,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        deadline: timedelta = DEADLINE,
    ) -> None:
        self._user_agent = f"Waybill/{version}"
        self._tls = tls
        self._allow_private = allow_private
        self._resolver = resolver
        self._clock = clock
        self._deadline = deadline

    def send(
        self, target_url: str, secrets: Sequence[str], webhook_id: str, timestamp: datetime, body: bytes
    ) -> Answer:
        """Send ``body`` once and wait for the answer.

        Redirects are not followed. Once the status is known it stands, whatever becomes of the rest of the
        answer; of that at most 64 KiB are read, in the time that is left, for the receiver's sake.

        Args:
            target_url: The endpoint's URL; checked again, for the rules may have changed since.
            secrets: ``whsec_…``, one or more (rotation): each signs.
            webhook_id: Stable over the retries of one outcome.
            timestamp: Of this attempt; aware.
            body: JSON in UTF-8.

        Returns:
            The answer. Whatever goes wrong on the way is an answer too, never an exception; its text names
            the host at most.
        """
        headers = {
            "Content-Type": "application/json",
            "User-Agent": self._user_agent,
            "Accept-Encoding": "identity",
            "Content-Length": str(len(body)),
            "Connection": "close",
            **signature_headers(secrets, webhook_id, timestamp, body),
        }
        try:
            url = check_url(target_url, allow_private=self._allow_private)
        except Invalid as error:
            return Answer(None, f"the URL {error.details[0].reason}", is_refused=True)
        deadline = _Deadline(self._deadline)
        try:
            target = look_up(
                lambda: resolve(url, allow_private=self._allow_private, resolver=self._resolver),
                deadline.remaining(),
            )
            with self._connect(target, deadline) as connection:
                request = h11.Request(
                    method="POST",
                    target=url.path,
                    headers=[("Host", url.host_header), *headers.items()],
                )
                status, retry_after = _exchange(connection, deadline, request, body)
        except Invalid as error:
            return Answer(None, f"{url.host} {error.details[0].reason}")
        except Transient as error:
            return Answer(None, str(error))
        except (OSError, h11.RemoteProtocolError) as error:
            return Answer(None, _describe(error, url, self._deadline))
        if 200 <= status <= 299:
            return Answer(status)
        wait = None if retry_after is None else parse_retry_after(retry_after, self._clock())
        return Answer(status, f"{url.host} answered {status}", wait)

    def _connect(self, target: Target, deadline: "_Deadline") -> socket.socket:
        """A connection to the checked target, with TLS where its URL asks for it."""
        plain = _first_connection(target, deadline)
        if target.url.scheme == "http":
            return plain
        try:
            plain.settimeout(deadline.remaining())
            return self._tls.wrap_socket(plain, server_hostname=target.url.host)
        except BaseException:
            plain.close()
            raise


def trust(ca_file: str | None = None) -> ssl.SSLContext:
    """Whom to trust: the system's authorities, or those in ``ca_file``.

    Certificates and host names are checked. Reads files: call it once, at the edge.
    """
    context = ssl.create_default_context(cafile=ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context


def signature_headers(
    secrets: Sequence[str], webhook_id: str, timestamp: datetime, body: bytes
) -> dict[str, str]:
    """The three headers of Standard Webhooks 1.0, one signature per secret, space-separated.

    Raises:
        ValueError: No secret, or one that is not base64.
    """
    if not secrets:
        raise ValueError("a callback is signed by at least one secret")
    sent_at = timestamp.astimezone(UTC)  # the library replaces the zone instead of converting
    signatures = [Webhook(secret).sign(webhook_id, sent_at, body.decode()) for secret in secrets]
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(int(sent_at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


def parse_retry_after(value: str, now: datetime) -> timedelta | None:
    """``Retry-After``, seconds or a date (RFC 9110, 10.2.3), as a wait of zero to a day; else None."""
    value = value.strip()
    if re.fullmatch(r"[0-9]+", value):
        digits = value.lstrip("0")
        return (
            MAX_RETRY_AFTER if len(digits) > 6 else min(timedelta(seconds=int(digits or 0)), MAX_RETRY_AFTER)
        )
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return min(max(date - now, timedelta(0)), MAX_RETRY_AFTER)


class _Deadline:
    """One moment by which everything ends. Each step gets what is left, never a fresh allowance."""

    def __init__(self, allowance: timedelta) -> None:
        self._ends_at = monotonic() + allowance.total_seconds()

    def remaining(self) -> float:
        """Seconds, more than zero; TimeoutError when there are none."""
        left = self._ends_at - monotonic()
        if left <= 0:
            raise TimeoutError
        return left


def _first_connection(target: Target, deadline: _Deadline) -> socket.socket:
    """To the first of the addresses that takes one; each may use its share of the time that is left."""
    failure = OSError("no address")
    for untried in range(len(target.addresses), 0, -1):
        try:
            return _connection(target.addresses[-untried], target.url.port, deadline.remaining() / untried)
        except OSError as error:
            failure = error
    raise failure


def _connection(address: IpAddress, port: int, timeout_seconds: float) -> socket.socket:
    connection = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6)
    try:
        connection.settimeout(timeout_seconds)
        connection.connect((str(address), port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        connection.close()
        raise
    return connection


def _exchange(
    connection: socket.socket, deadline: _Deadline, request: h11.Request, body: bytes
) -> tuple[int, str | None]:
    """Send the request and read the answer: status and ``Retry-After``."""
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_ANSWER_BYTES)
    events = (request, h11.Data(data=body), h11.EndOfMessage())
    with suppress(BrokenPipeError, ConnectionResetError):  # it may have answered first, without reading all
        _send_all(connection, deadline, b"".join(http.send(event) or b"" for event in events))
    reader = _AnswerReader(connection, deadline, http)
    response = reader.response()
    reader.finish()
    retry_after = next((value for name, value in response.headers if name == b"retry-after"), None)
    return response.status_code, None if retry_after is None else retry_after.decode("latin-1")


def _send_all(connection: socket.socket, deadline: _Deadline, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        connection.settimeout(deadline.remaining())
        rest = rest[connection.send(rest[:_CHUNK_BYTES]) :]


class _AnswerReader:
    """Reads one answer off a connection: never past the deadline, never more than ``MAX_ANSWER_BYTES``."""

    def __init__(self, connection: socket.socket, deadline: _Deadline, http: h11.Connection) -> None:
        self._connection = connection
        self._deadline = deadline
        self._http = http
        self._budget = MAX_ANSWER_BYTES

    def response(self) -> h11.Response:
        """The final status and headers; informational answers (1xx) are passed over."""
        while True:
            event = self._next_event()
            if isinstance(event, h11.Response):
                return event

    def finish(self) -> None:
        """Read to the end, the budget or the deadline, whichever comes first. It is of no interest."""
        with suppress(OSError, h11.RemoteProtocolError):
            while not isinstance(self._next_event(), h11.EndOfMessage):
                pass

    def _next_event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(self._receive())
        return event

    def _receive(self) -> bytes:
        if not self._budget:
            raise h11.RemoteProtocolError("answer too large")
        self._connection.settimeout(self._deadline.remaining())
        data = self._connection.recv(min(self._budget, _CHUNK_BYTES))
        if not data:
            raise ConnectionResetError
        self._budget -= len(data)
        return data


def _describe(error: OSError | h11.RemoteProtocolError, url: CallbackUrl, allowance: timedelta) -> str:
    """One line for the endpoint's owner. No address, no errno text: those may tell of the inside."""
    match error:
        case TimeoutError():
            return f"{url.host}: no answer within {allowance.total_seconds():g} s"
        case ssl.SSLCertVerificationError():
            return f"{url.host}: certificate refused ({error.verify_message})"
        case ssl.SSLError():
            return f"{url.host}: no TLS connection"
        case ConnectionRefusedError():
            return f"{url.host}: connection refused"
        case ConnectionError():
            return f"{url.host}: connection lost before an answer"
        case h11.RemoteProtocolError():
            return f"{url.host}: the answer is not HTTP/1.1"
        case _:
            return f"{url.host}: cannot be reached"
