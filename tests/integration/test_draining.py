"""An API process that is told to stop: who is told what, in which order, and that nobody meets a reset."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from uvicorn import Config
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from api_shim.web.guarded_server import GuardedServer
from api_shim.web.protocol import GuardedProtocol
from deploy.ports import free_port
from models.identity.principals import Role
from tests.kit.api import Api, running_api, serve
from tests.kit.waiting import wait_until

ENTITIES = "/api/v1/entities"
LEAD_SECONDS = 10
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def api(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """Makes the schema and the users; the processes under test stand beside it."""
    with running_api(database_url, tmp_path_factory.mktemp("data")) as running:
        yield running


class Process:
    """An API process that is to be stopped."""

    def __init__(self, api: Api, process: "subprocess.Popen[str]", port: int) -> None:
        self.process = process
        self.port = port
        self.headers = {
            "Authorization": f"Bearer {api.tokens[Role.USER]}",
            "Content-Type": "application/json",
        }

    def connect(self) -> http.client.HTTPConnection:
        """A connection that is kept."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.connect()
        return connection

    def ask(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Send one request over it; its answer, whole."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        text = None if body is None else json.dumps(body)
        connection.request(method, path, text, self.headers | named)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()

    def is_listening(self) -> bool:
        """Whether a connection can be had."""
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        """SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def ended(self) -> int:
        """Its exit status; what it said is JSON lines, and none of them an error."""
        output, errors = self.process.communicate(timeout=30)
        assert errors == ""
        assert [line for line in map(json.loads, output.splitlines()) if line["level"] == "ERROR"] == []
        return self.process.returncode


@contextmanager
def running(api: Api, database_url: str, *, lead: int = 0, patience: float = 8) -> Iterator[Process]:
    port = free_port()
    data_dir = api.container.settings.data_dir
    process = serve(database_url, data_dir, port, lead_seconds=lead, patience_seconds=patience)
    try:
        made = Process(api, process, port)
        wait_until(made.is_listening, timeout_seconds=90, what="it listens")
        yield made
    finally:
        process.kill()
        process.wait()


def test_readiness_goes_off_first_and_whoever_comes_before_the_end_is_served_and_sent_on(
    api: Api, database_url: str
) -> None:
    with running(api, database_url, lead=LEAD_SECONDS) as process:
        kept, polling, streaming = process.connect(), process.connect(), process.connect()
        status, headers, body = process.ask(kept, "POST", ENTITIES, {"name": "before"})
        job = json.loads(body)
        assert (status, headers["connection"]) == (202, None)
        path = f"/api/v1/jobs/{job['id']}"
        polling.request("GET", path, headers={**process.headers, "Prefer": "wait=30"})
        streaming.request("GET", f"{path}/events", headers=process.headers)
        events = streaming.getresponse()
        assert events.status == 200
        url = f"ws://127.0.0.1:{process.port}/api/v1/stream"
        with connect(url) as stream:
            stream.send(json.dumps({"token": api.tokens[Role.USER], "subscribe": [job["id"]]}))
            seen = json.loads(stream.recv(timeout=20))["sequence"]

            process.stop()

            # not ready, and still serving
            def readiness() -> tuple[int, str | None]:
                status, headers, _ = process.ask(process.connect(), "GET", "/health/ready")
                return status, headers["connection"]

            wait_until(lambda: readiness() == (503, "close"), timeout_seconds=LEAD_SECONDS)
            status, headers, _ = process.ask(kept, "POST", ENTITIES, {"name": "during"})
            assert (status, headers["connection"]) == (202, "close")
            assert process.is_listening()

            # then nobody new, and those who wait are told where things stand
            answer = polling.getresponse()
            assert (answer.status, json.loads(answer.read())["state"]) == (200, "queued")
            assert (answer.headers["retry-after"], answer.headers["connection"]) == ("1", "close")
            assert not process.is_listening()
            assert events.read().split(b"\n\n")[-2].startswith(b"retry: ")
            with pytest.raises(ConnectionClosed) as closing:
                stream.recv(timeout=20)
        assert closing.value.rcvd is not None
        assert closing.value.rcvd.code == 1012
        assert closing.value.rcvd.reason == f"restarting: come back with after={seen}"
        assert process.ended() == 0


def test_those_who_wait_are_not_sent_home_while_others_are_still_taken_in(
    api: Api, database_url: str
) -> None:
    with running(api, database_url, lead=LEAD_SECONDS) as process:
        polling = process.connect()
        _, _, body = process.ask(polling, "POST", ENTITIES, {"name": "waited for"})
        job = json.loads(body)["id"]
        polling.request("GET", f"/api/v1/jobs/{job}", headers={**process.headers, "Prefer": "wait=30"})
        process.stop()
        began = time.monotonic()
        api.apply(job)  # in time: it need not come back
        answer = polling.getresponse()
        assert json.loads(answer.read())["state"] == "succeeded"
        assert process.is_listening() or time.monotonic() - began > LEAD_SECONDS
        assert process.ended() == 0


def _hammer(process: Process, counts: Counter[str], kept: bool, stop: threading.Event) -> None:
    """Ask again and again; over one connection while that is allowed, or each time over a new one."""
    connection: http.client.HTTPConnection | None = None
    while not stop.is_set():
        try:
            connection = connection or process.connect()
        except ConnectionRefusedError:
            counts["refused"] += 1
            return
        except OSError as error:
            counts[f"connecting: {error!r}"] += 1
            return
        try:
            status, headers, _ = process.ask(connection, "POST", ENTITIES, {"name": "x"})
        except (http.client.HTTPException, OSError) as error:
            counts[f"asking: {error!r}"] += 1
            return
        counts[str(status)] += 1
        if not kept or headers["connection"] == "close":
            connection.close()
            connection = None
        stop.wait(0.3 if kept else 0)  # so that most are idle when the signal comes


@pytest.mark.parametrize("kept", [True, False], ids=["kept connections", "new connections"])
def test_no_request_meets_a_reset_whenever_it_is_sent(api: Api, database_url: str, kept: bool) -> None:
    counts: Counter[str] = Counter()
    stop = threading.Event()
    with running(api, database_url) as process:
        threads = [
            threading.Thread(target=_hammer, args=(process, counts, kept, stop), daemon=True)
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: counts["202"] > 50, timeout_seconds=120, what="all are at it")
        process.stop()
        for thread in threads:
            thread.join(30)
        stop.set()
        assert process.ended() == 0
    assert set(counts) == {"202", "refused"}
    assert counts["refused"] == 8


def _begin_upload(process: Process) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", process.port), timeout=30)
    head = "".join(f"{name}: {value}\r\n" for name, value in process.headers.items())
    client.sendall(f"POST {ENTITIES} HTTP/1.1\r\nHost: x\r\n{head}Content-Length: 20\r\n\r\n".encode())
    client.sendall(b'{"name": ')
    return client


def _rest(client: socket.socket) -> bytes:
    received = b""
    while chunk := client.recv(65536):
        received += chunk
    return received


def test_slow_upload_is_taken_in_to_its_end_and_further_signals_change_nothing(
    api: Api, database_url: str
) -> None:
    with running(api, database_url) as process:
        client = _begin_upload(process)
        process.ask(process.connect(), "GET", "/health/live")  # so what was sent before has been read
        process.stop()
        wait_until(lambda: not process.is_listening(), timeout_seconds=20)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            process.process.send_signal(number)
        client.sendall(b'"uploaded"}')
        answer = _rest(client)
        assert answer.startswith(b"HTTP/1.1 202 ")
        assert b"connection: close" in answer
        assert process.ended() == 0


def test_upload_that_does_not_end_is_refused_and_not_reset(api: Api, database_url: str) -> None:
    with running(api, database_url, patience=1) as process:
        client = _begin_upload(process)
        process.ask(process.connect(), "GET", "/health/live")
        process.stop()
        answer = _rest(client)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: 1" in head
        assert b"\r\nconnection: close" in head
        assert json.loads(body)["error"] == "Unavailable"
        client.sendall(b'"late"')  # crosses the refusal
        assert process.ended() == 0


async def _plain(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.skipif(sys.platform != "linux", reason="ONLY LINUX LETS A LISTENER ADMIT NOBODY")
def test_who_comes_at_the_moment_of_closing_is_refused_and_not_reset() -> None:
    met: list[str] = []

    def come() -> None:
        with socket.socket() as client:
            client.settimeout(30)
            try:
                client.connect(("127.0.0.1", port))
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                met.append(client.recv(12).decode())
            except OSError as error:
                met.append(type(error).__name__)

    class Latecomer:
        """The listener, for whom somebody comes when everybody was taken in and it is about to close."""

        def __init__(self, listener: Any) -> None:
            self.listener = listener
            self.sockets = listener.sockets
            self.client = threading.Thread(target=come, daemon=True)

        def close(self) -> None:
            self.client.start()
            self.client.join(0.5)
            self.listener.close()

    config = Config(_plain, port=0, http=GuardedProtocol, ws="none", log_config=None, lifespan="off")
    server = GuardedServer(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started, timeout_seconds=30, what="the server has started")
    port = server.servers[0].sockets[0].getsockname()[1]
    latecomer: Any = Latecomer(server.servers[0])
    server.servers[0] = latecomer
    server.should_exit = True
    thread.join(30)
    latecomer.client.join(30)
    assert met == ["ConnectionRefusedError"]


_STANDS_STILL = """
import time
from uvicorn import Config
from api_shim.web.guarded_server import GuardedServer
from models import stop_deadline
from models.stop_deadline import StopDeadline
stop_deadline._SPARE_SECONDS = 5

async def app(scope, receive, send):
    print("here", flush=True)
    while True:
        time.sleep(0.1)

GuardedServer(Config(app, port=0, lifespan="on"), on_signal=StopDeadline(0.2).begin).run()
"""


def test_it_ends_in_time_though_its_event_loop_stands_still() -> None:
    program = [sys.executable, "-c", _STANDS_STILL]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        process.terminate()
        try:
            assert process.wait(60) == 0
        finally:
            process.kill()
