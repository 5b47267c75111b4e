"""The demo against a stand-in API that fails on purpose, and a real ledger table."""

import json
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psycopg
import pytest

from deploy import demo
from models.settings import Settings

_TIMES = {"createdAt": "2026-01-01T00:00:00.000000Z", "finishedAt": "2026-01-01T00:00:00.250000Z"}


class FakeApi(ThreadingHTTPServer):
    """Accepts entities; every third request is cut off, every fifth is a 503, tokens run out."""

    daemon_threads = True

    def __init__(self, database_url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.database_url = database_url
        self.lock = threading.Lock()
        self.requests = 0
        self.by_key: dict[str, str] = {}
        self.polls: dict[str, int] = {}
        self.final_state = "succeeded"
        self.forgets_ledger = False
        self.valid_token = "token-1"

    def accept(self, key: str) -> str:
        with self.lock:
            if key not in self.by_key:
                self.by_key[key] = str(uuid.uuid4())
                if not self.forgets_ledger:
                    with psycopg.connect(self.database_url) as connection:
                        connection.execute(
                            "INSERT INTO waybill.jobs VALUES (%s, %s)", (self.by_key[key], self.final_state)
                        )
            return self.by_key[key]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeApi

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self._is_allowed():
            job_id = self.server.accept(self.headers["Idempotency-Key"])
            if not self._is_unlucky():  # after the effect: a lost answer
                self._answer(202, {"id": job_id, "done": False, "state": "queued", "sequence": 1})

    def do_GET(self) -> None:
        if self._is_allowed() and not self._is_unlucky():
            job_id = self.path.rsplit("/", 1)[1]
            with self.server.lock:
                self.server.polls[job_id] = self.server.polls.get(job_id, 0) + 1
                is_first = self.server.polls[job_id] == 1
            if is_first:
                self._answer(304, None)
            else:
                state = self.server.final_state
                self._answer(200, {"id": job_id, "done": True, "state": state, "sequence": 2, **_TIMES})

    def _is_allowed(self) -> bool:
        if self.headers["Authorization"] == f"Bearer {self.server.valid_token}":
            return True
        self._answer(401, {"error": "Unauthorized"})
        return False

    def _is_unlucky(self) -> bool:
        with self.server.lock:
            self.server.requests += 1
            number = self.server.requests
            if number == 20:
                self.server.valid_token = "token-2"
        if number % 5 == 0:
            self._answer(503, {"error": "Unavailable"})
        elif number % 3 == 0:
            self.close_connection = True
        else:
            return False
        return True

    def _answer(self, status: int, document: dict[str, Any] | None) -> None:
        body = b"" if document is None else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def api(database_url: str) -> Iterator[FakeApi]:
    with psycopg.connect(database_url) as connection:
        connection.execute("CREATE SCHEMA IF NOT EXISTS waybill")
        connection.execute("CREATE TABLE IF NOT EXISTS waybill.jobs (id uuid PRIMARY KEY, state text)")
    with FakeApi(database_url) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def settings(api: FakeApi) -> Settings:
    return Settings(api_port=api.server_address[1], database_url=api.database_url)


def test_every_job_succeeds_in_spite_of_lost_answers(
    api: FakeApi, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    status = demo.run(settings, 60, token=lambda: api.valid_token)
    said = capsys.readouterr().out
    assert status == 0, said
    assert len(api.by_key) == 60
    assert "succeeded: 60 says the API, 60 says the ledger, of 60" in said
    assert "for 503" in said
    assert "for 401" in said
    assert "submit→done p50" in said


def test_failed_jobs_are_counted_and_quoted(
    api: FakeApi, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    api.final_state = "failed"
    assert demo.run(settings, 7, token=lambda: api.valid_token) == 1
    said = capsys.readouterr().out
    assert "succeeded: 0 says the API, 0 says the ledger, of 7" in said
    assert said.count("fault: job") == 5
    assert "2 faults more" in said


def test_ledger_that_disagrees_with_the_api_is_no_success(
    api: FakeApi, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    api.forgets_ledger = True
    assert demo.run(settings, 3, token=lambda: api.valid_token) == 1
    assert "succeeded: 3 says the API, 0 says the ledger, of 3" in capsys.readouterr().out


def test_api_that_stays_away_ends_the_demo(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "_PATIENCE_SECONDS", 0.2)
    nobody = settings.model_copy(update={"api_port": 1})
    assert demo.run(nobody, 2, token=lambda: "token") == 1
    assert "0 says the API" in capsys.readouterr().out


def test_stop_request_ends_the_demo(settings: Settings) -> None:
    assert demo.run(settings, 1000, token=lambda: "token", is_cancelled=lambda: True) == 1
