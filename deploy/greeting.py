"""What ``waybill up`` says on its output: where everything is, the login, three lines to paste."""

import json
import re
from collections.abc import Collection, Iterable, Iterator
from urllib.parse import unquote

from deploy.readiness import http_url
from deploy.server import Server
from models.log import MASK, names_a_secret
from models.settings import Settings

_NEXT_URL = re.compile(r";(?=[\w+]+://)")
_IN_QUERY = re.compile(r"([?&])([^?&=]*)=[^&]*")
_PASSWORD = re.compile(r"^([^:/?#]*:)(?:[^?]*|.*)@")
"""Up to the last ``@``: those who take our URLs let a password hold ``:``, ``@``, ``/`` and ``?`` as such."""


def masked(url: str) -> str:
    """The URL, or several with ``;`` between them, without passwords: before the host or in the query."""
    return ";".join(_masked(one) for one in _NEXT_URL.split(url))


def _masked(url: str) -> str:
    start = url.find("://") + 3 if "://" in url else 0
    return url[:start] + _PASSWORD.sub(rf"\1{MASK}@", _IN_QUERY.sub(_without_secret, url[start:]))


def _without_secret(found: re.Match[str]) -> str:
    mark, name = found.groups()
    return f"{mark}{name}={MASK}" if names_a_secret(unquote(name)) else found[0]


def server_line(server: Server) -> str:
    """One start-up line: name, pid, URL, log file."""
    return f"{server.name:<10} pid {server.pid}  {masked(server.url)}  log {server.log_file}"


def platform_lines(
    settings: Settings, pids: Iterable[tuple[str, int | None]], *, own_servers: Collection[str]
) -> Iterator[str]:
    """Start-up lines of our own processes, and of the servers that a setting names (or nobody)."""
    for name, url in (
        ("postgres", settings.database_url),
        ("rabbitmq", settings.broker_url if settings.has_broker else ""),
        ("redis", settings.redis_url),
    ):
        if name not in own_servers:
            yield f"{name:<10} {masked(url) or 'not used'}"
    for name, pid in pids:
        yield f"{name:<10} pid {pid}  log: this output"
    api = http_url(settings.api_host, settings.api_port)
    yield f"{'API':<10} {api}/api/v1  documents {api}/docs  health {api}/health/ready  metrics {api}/metrics"
    yield f"{'Flower':<10} {http_url('127.0.0.1', settings.flower_port)} (the admin's email and password)"
    if settings.broker_api_url:
        yield f"{'RabbitMQ':<10} {masked(settings.broker_api_url)} (management)"


def login_lines(settings: Settings, generated_password: str | None) -> Iterator[str]:
    """The admin's login. A generated password is shown here and nowhere else; a given one never."""
    yield f"Admin login: {settings.admin_email}"
    if generated_password is not None:
        yield f"   password: {generated_password}   (generated; shown this once, only its hash is kept)"
    elif settings.admin_password is not None:
        yield "   password: the one in WAYBILL_ADMIN_PASSWORD"
    else:
        yield "   password: shown at the first start (forgotten? waybill user --help)"


def paste_lines(settings: Settings, generated_password: str | None) -> list[str]:
    """Log in, submit a job, poll it: three lines for any POSIX shell with curl.

    A password that we may not print is taken from ``WAYBILL_ADMIN_PASSWORD`` of the shell they are pasted in.
    """
    api = http_url(settings.api_host, settings.api_port)
    if generated_password is not None:
        body = _shell_quoted(json.dumps({"email": settings.admin_email, "password": generated_password}))
    else:
        email = _shell_quoted('{"email":' + json.dumps(settings.admin_email) + ',"password":"')
        body = email + '"${WAYBILL_ADMIN_PASSWORD:?export it first}"' + "'\"}'"
    as_json = "-H 'Content-Type: application/json'"
    bearer = '-H "Authorization: Bearer $TOKEN"'
    return [
        f"TOKEN=$(curl -s {api}/auth/login {as_json} -d {body}"
        ' | sed \'s/.*"accessToken": *"\\([^"]*\\)".*/\\1/\')',
        f'JOB=$(curl -s {api}/api/v1/entities {bearer} {as_json} -d \'{{"name":"hello"}}\''
        ' | grep -o \'"id": *"[^"]*\' | head -n 1 | cut -d \'"\' -f 4); echo "$JOB"',
        f"until curl -s {api}/api/v1/jobs/$JOB {bearer} | grep '\"done\": *true'; do sleep 0.2; done",
    ]


def _shell_quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
