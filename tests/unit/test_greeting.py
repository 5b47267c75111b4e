"""What ``up`` prints: no password that was given, lines that a shell takes."""

import shlex
import shutil
import subprocess
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from pydantic import SecretStr

from deploy.greeting import login_lines, masked, paste_lines, platform_lines
from models.settings import Settings


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://waybill:geheim@127.0.0.1:5/waybill", "postgresql://waybill:***@127.0.0.1:5/waybill"),
        ("redis://:geheim@127.0.0.1:6/0", "redis://:***@127.0.0.1:6/0"),
        ("redis://127.0.0.1:6/0", "redis://127.0.0.1:6/0"),
        ("amqp://w:geheim@a:1/v;amqp://w:geheim@b:2/v", "amqp://w:***@a:1/v;amqp://w:***@b:2/v"),
        ("postgresql://w:geheim@a:1,b:2/w?x=y", "postgresql://w:***@a:1,b:2/w?x=y"),
        ("redis://h:6/0?db=1&password=ge@h;eim", "redis://h:6/0?db=1&password=***"),
        ("postgresql://h/w?user=w&pass%77ord=geheim&x=y", "postgresql://h/w?user=w&pass%77ord=***&x=y"),
        ("postgresql://w:ge:he:im@h/w", "postgresql://w:***@h/w"),
        ("redis://:ge@h@im@h/0", "redis://:***@h/0"),
        ("postgresql://w:ge/he@im@h:5/w", "postgresql://w:***@h:5/w"),
        ("postgresql://w:ge?heim@h:5/w", "postgresql://w:***@h:5/w"),
        ("redis://:ge;heim@h/0", "redis://:***@h/0"),
        ("amqp://w:ge:heim@a:1/v;amqp://w:ge@heim@b:2/v", "amqp://w:***@a:1/v;amqp://w:***@b:2/v"),
        ("w:geheim@h:15672", "w:***@h:15672"),
        ("redis://w@[::1]:6/0", "redis://w@[::1]:6/0"),
    ],
)
def test_password_in_a_url_is_masked(url: str, shown: str) -> None:
    assert masked(url) == shown


def test_given_password_is_never_printed() -> None:
    settings = Settings(admin_password=SecretStr("geheim"))
    text = "\n".join([*login_lines(settings, None), *paste_lines(settings, None)])
    assert "geheim" not in text
    assert "WAYBILL_ADMIN_PASSWORD" in text


def test_generated_password_is_printed_with_the_login() -> None:
    settings = Settings()
    assert "s3cret" in "\n".join(login_lines(settings, "s3cret"))
    assert "s3cret" in paste_lines(settings, "s3cret")[0]


def test_servers_named_by_settings_are_listed_and_our_own_are_not_repeated() -> None:
    settings = Settings(database_url="postgresql://u:p@db:5432/w", api_host="::")
    text = "\n".join(platform_lines(settings, [("node", 7)], own_servers={"redis"}))
    assert "postgresql+psycopg://u:***@db:5432/w" in text
    assert "rabbitmq   not used" in text
    assert "redis" not in text
    assert "http://[::1]:8000/api/v1" in text


class _Api(BaseHTTPRequestHandler):
    polls = 0
    logins: list[bytes] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/auth/login":
            _Api.logins.append(body)
            self._answer(b'{"accessToken":"abc.def","refreshToken":"other","tokenType":"Bearer"}')
        elif self.headers["Authorization"] == "Bearer abc.def":
            self._answer(b'{"id":"job-1","state":"queued","done":false,"resourceId":"r-1"}')

    def do_GET(self) -> None:
        _Api.polls += 1
        done = b"true" if _Api.polls > 1 else b"false"
        self._answer(
            b'{"id":"job-1","done":' + done + b',"result":{"id":"r-1"},"path":"%b"}' % self.path.encode()
        )

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.skipif(shutil.which("curl") is None, reason="the lines need curl")
@pytest.mark.parametrize("shell", ["bash", "sh"])
@pytest.mark.parametrize("generated", ['it\'s "quoted" $HOME', None])
def test_pasted_lines_log_in_submit_and_poll(shell: str, generated: str | None) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Api)
    Thread(target=server.serve_forever, daemon=True).start()
    _Api.polls = 0
    lines = paste_lines(Settings(api_port=server.server_address[1]), generated)
    assert len(lines) == 3
    assert all(shlex.split(line) for line in lines)
    result = subprocess.run(
        [shell, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={"PATH": "/usr/bin:/bin", "WAYBILL_ADMIN_PASSWORD": "from-env"},
    )
    server.shutdown()
    assert result.stderr == ""
    assert result.stdout.splitlines()[0] == "job-1"
    assert '"done":true' in result.stdout
    assert "/api/v1/jobs/job-1" in result.stdout
    assert ("from-env" if generated is None else "quoted").encode() in _Api.logins[-1]
