"""The weather of a link does what its name says; the machine's faults rest on it."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.kit.faulty_link import FaultyLink, Mode, Weather
from tests.kit.waiting import wait_until


class Echo:
    """Answers each message with itself, and remembers."""

    def __init__(self) -> None:
        self.heard = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        try:
            while data := connection.recv(4096):
                self.heard += data
                connection.sendall(data)
        except OSError:
            pass
        connection.close()

    def close(self) -> None:
        with suppress(OSError):  # closed already
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    made = Echo()
    yield made
    made.close()


@pytest.fixture
def link(echo: Echo) -> Iterator[FaultyLink]:
    made = FaultyLink("test", echo.port)
    yield made
    made.close()


@contextmanager
def connected(link: FaultyLink) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", link.port), timeout=10) as client:
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"
        yield client


def is_silent(client: socket.socket, seconds: float = 0.3) -> bool:
    client.settimeout(seconds)
    try:
        return client.recv(100) is None
    except TimeoutError:
        return True
    finally:
        client.settimeout(10)


@pytest.mark.parametrize("weather", [Weather(Mode.DELAY, seconds=0.05), Weather(Mode.TRICKLE, 0.01, piece=2)])
def test_slow_link_brings_everything(link: FaultyLink, weather: Weather) -> None:
    with connected(link) as client:
        link.set(weather)
        client.sendall(b"0123456789")
        got = b""
        while len(got) < 10:
            got += client.recv(100)
        assert got == b"0123456789"


def test_black_hole_says_nothing_and_brings_all_when_it_heals(link: FaultyLink, echo: Echo) -> None:
    with connected(link) as client:
        link.set(Weather(Mode.BLACK_HOLE))
        client.sendall(b"later")
        with socket.create_connection(("127.0.0.1", link.port), timeout=10) as second:
            second.sendall(b"new")
            assert is_silent(client)
            assert is_silent(second)
            assert echo.heard == b"hello"
            link.heal()
            assert client.recv(100) == b"later"
            assert second.recv(100) == b"new"


def test_reset_ends_open_and_new_connections(link: FaultyLink) -> None:
    with connected(link) as client:
        link.set(Weather(Mode.RESET))
        with pytest.raises(ConnectionResetError):
            client.recv(100)
    with pytest.raises(ConnectionResetError):
        socket.create_connection(("127.0.0.1", link.port), timeout=10).recv(100)
    link.heal()
    with connected(link):
        wait_until(lambda: link.connections == 1)


def test_half_closed_client_reads_an_end_and_is_still_heard(link: FaultyLink, echo: Echo) -> None:
    with connected(link) as client:
        link.set(Weather(Mode.HALF_CLOSE))
        assert client.recv(100) == b""
        client.sendall(b" still")
        wait_until(lambda: echo.heard == b"hello still")


def test_swallowed_reply_leaves_the_request_done_and_the_client_waiting(link: FaultyLink, echo: Echo) -> None:
    with connected(link) as client:
        link.set(Weather(Mode.SWALLOW, after_bytes=3))
        client.sendall(b"request")
        assert client.recv(100) == b"req"
        assert is_silent(client)
        assert echo.heard == b"hellorequest"
        link.heal()
        with pytest.raises(ConnectionResetError):
            client.recv(100)


def test_truncated_reply_ends_the_connection(link: FaultyLink, echo: Echo) -> None:
    with connected(link) as client:
        link.set(Weather(Mode.TRUNCATE, after_bytes=3))
        client.sendall(b"request")
        wait_until(lambda: link.connections == 0)
        got = b""
        with suppress(ConnectionResetError):  # which may overtake what was sent before it
            while data := client.recv(100):
                got += data
        assert got in (b"req", b"")
        assert echo.heard == b"hellorequest"


def test_client_of_a_server_that_is_away_is_reset(link: FaultyLink, echo: Echo) -> None:
    echo.close()
    with pytest.raises(ConnectionResetError):
        socket.create_connection(("127.0.0.1", link.port), timeout=10).recv(100)


def test_link_that_leads_elsewhere_leaves_open_connections_where_they_are(
    link: FaultyLink, echo: Echo
) -> None:
    other = Echo()
    with connected(link) as old:
        link.lead_to(other.port)
        with connected(link) as new:
            for client in (old, new):
                client.sendall(b"x")
                assert client.recv(100) == b"x"
    other.close()
    assert (echo.heard, other.heard) == (b"hellox", b"hellox")


def test_client_whose_server_ends_as_soon_as_it_is_reached_is_told() -> None:
    """It may end before the client's own half of the line is joined."""
    listener = socket.create_server(("127.0.0.1", 0))

    def refuse() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()

    threading.Thread(target=refuse, daemon=True).start()
    link = FaultyLink("test", listener.getsockname()[1])
    try:
        for _ in range(300):
            with (
                socket.create_connection(("127.0.0.1", link.port), timeout=5) as client,
                suppress(ConnectionError),
            ):
                assert client.recv(1) == b""
    finally:
        link.close()
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
