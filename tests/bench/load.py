"""The load generator: one process, keep-alive connections, requests built beforehand, answers counted.

Our own rather than ``wrk``, because a round needs a fixed number of requests with unique bodies and the
exact count of each status. A bare readiness loop over sockets costs some 10 µs of CPU a request, which
matters where client and servers share two cores; :mod:`tests.bench.ceiling` measures what it can drive.
HTTP/1.1 with ``Content-Length`` answers only.
"""

import json
import resource
import selectors
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from tests.bench.payload import entity

PATIENCE_SECONDS = 60.0
HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to send: ``requests`` POSTs to ``path``, numbered from ``first``."""

    port: int
    path: str
    requests: int
    connections: int
    token: str = ""
    first: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came back. Times are ``time.monotonic()``, which all processes of a machine share.

    Attributes:
        statuses: HTTP status -> count; "lost" counts requests whose connection broke.
        cpu_seconds: User and system time of the generator while it was sending.
    """

    started_at: float
    finished_at: float
    statuses: dict[str, int]
    cpu_seconds: float
    p50_ms: float
    p95_ms: float
    p99_ms: float

    @property
    def accepted(self) -> int:
        """How many were answered 202."""
        return self.statuses.get("202", 0)

    @property
    def answered_per_second(self) -> float:
        """Answers of any status, from the first byte sent to the last answer."""
        return sum(self.statuses.values()) / (self.finished_at - self.started_at)


def build_requests(order: Order) -> list[bytes]:
    """Every request of the order, as the bytes to send."""
    head = f"POST {order.path} HTTP/1.1\r\nHost: 127.0.0.1:{order.port}\r\nContent-Type: application/json\r\n"
    if order.token:
        head += f"Authorization: Bearer {order.token}\r\n"
    bodies = (
        json.dumps(entity(number)).encode() for number in range(order.first, order.first + order.requests)
    )
    return [f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body for body in bodies]


def answer_length(data: bytes) -> int | None:
    """The length of the first answer in ``data``, head included; None while its head is incomplete."""
    end = data.find(HEAD_END)
    if end < 0:
        return None
    head = data[:end].lower()
    at = head.find(b"\r\ncontent-length:")
    if at < 0:
        raise ValueError("an answer without Content-Length")
    stop = head.find(b"\r\n", at + 2)
    value = head[at + 17 : stop if stop >= 0 else end]
    return end + len(HEAD_END) + int(value)


@dataclass(slots=True)
class Connection:
    """One keep-alive connection with at most one request under way."""

    socket: socket.socket
    sent_at: float = 0.0
    received: bytes = b""


class LoadGenerator:
    """Keeps every connection busy until all requests are answered."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._requests: Iterator[bytes] = iter(build_requests(order))
        self._selector = selectors.DefaultSelector()
        self._statuses: Counter[bytes] = Counter()
        self._latencies: list[float] = []
        self._busy = 0

    def run(self) -> Outcome:
        """Send everything; return when the last answer is in."""
        connections = [self._connect() for _ in range(self._order.connections)]
        cpu_before, started_at = _cpu_seconds(), time.monotonic()
        for connection in connections:
            self._send_next(connection)
        while self._busy:
            ready = self._selector.select(PATIENCE_SECONDS)
            if not ready:
                self._statuses[b"lost"] += self._busy
                break
            for key, _ in ready:
                self._receive(key.data)
        finished_at = time.monotonic()
        for connection in connections:
            connection.socket.close()
        return Outcome(
            started_at=started_at,
            finished_at=finished_at,
            statuses={status.decode(): count for status, count in self._statuses.items()},
            cpu_seconds=_cpu_seconds() - cpu_before,
            p50_ms=self._percentile(0.50),
            p95_ms=self._percentile(0.95),
            p99_ms=self._percentile(0.99),
        )

    def _connect(self) -> Connection:
        link = socket.create_connection(("127.0.0.1", self._order.port))
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(link)
        self._selector.register(link, selectors.EVENT_READ, connection)
        return connection

    def _send_next(self, connection: Connection) -> None:
        request = next(self._requests, None)
        if request is None:
            return
        connection.received = b""
        connection.sent_at = time.monotonic()
        # A request is far smaller than the socket's buffer, which is empty: this does not block.
        connection.socket.sendall(request)
        self._busy += 1

    def _receive(self, connection: Connection) -> None:
        try:
            data = connection.socket.recv(65_536)
        except ConnectionError:
            data = b""
        if not data:
            self._replace(connection)
            return
        data = connection.received + data
        length = answer_length(data)
        if length is None or len(data) < length:
            connection.received = data
            return
        self._statuses[data[9:12]] += 1
        self._latencies.append(time.monotonic() - connection.sent_at)
        self._busy -= 1
        self._send_next(connection)

    def _replace(self, connection: Connection) -> None:
        """The server hung up: the request under way is lost, the rest goes on over a new connection."""
        self._selector.unregister(connection.socket)
        connection.socket.close()
        self._statuses[b"lost"] += 1
        self._busy -= 1
        self._send_next(self._connect())

    def _percentile(self, share: float) -> float:
        if not self._latencies:
            return 0.0
        ordered = sorted(self._latencies)
        return ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1_000


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    print(json.dumps(asdict(LoadGenerator(Order(**json.loads(sys.argv[1]))).run())))
