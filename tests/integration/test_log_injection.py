"""What callers write never makes a log line of its own, nor a terminal's command in one."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from models.identity.principals import Role
from models.log import LineFormatter
from tests.kit.api import Api, running_api
from tests.kit.waiting import wait_until

ENTITIES = "/api/v1/entities"
FORGED = '{"level":"CRITICAL","message":"forged"}'
HOSTILE = [
    f"\n{FORGED}\n",
    f"\r\n{FORGED}",
    '","level":"CRITICAL","message":"forged',
    f"\u2028{FORGED}\u2029{FORGED}\x85{FORGED}\x0b{FORGED}\x0c{FORGED}\x1c{FORGED}",
    "\x1b[2J\x1b]0;owned\x07",
    "\x9b2J",
    "\u202egnp.exe\u2066",
    "\x00\x7f",
    "\ud800",
    "${jndi:ldap://x}%s%d%(levelname)s{0}",
]


@pytest.fixture(scope="module")
def api(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(database_url, tmp_path_factory.mktemp("data")) as running:
        yield running


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """Everything that is logged meanwhile, as production writes it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.setLevel(level)
    root.removeHandler(handler)


def _documents(text: str) -> list[dict[str, Any]]:
    """The lines, by the most generous reading of what a line is."""
    assert all(character == "\n" or character.isprintable() for character in text), ascii(text)
    documents = [json.loads(line) for line in text.splitlines()]
    assert len(documents) == text.count("\n")
    return documents


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_stays_in_its_member(text: str, lines: io.StringIO) -> None:
    logging.getLogger("waybill.test").info("said %s", text, extra={"said": text, "nested": {text: [text]}})
    (line,) = _documents(lines.getvalue())
    assert (line["level"], line["message"]) == ("INFO", f"said {text}")
    assert line["said"] == text


def test_error_with_hostile_text_is_one_line(lines: io.StringIO) -> None:
    try:
        raise ValueError("".join(HOSTILE))
    except ValueError:
        logging.getLogger("waybill.test").exception("failed")
    (line,) = _documents(lines.getvalue())
    assert line["level"] == "ERROR"


@pytest.mark.parametrize(
    "given",
    [
        'abcdefgh","level":"CRITICAL","message":"forged',
        FORGED,
        "abcdefgh\x85" + FORGED,
        "abcdefgh%0a" + FORGED,
        "abcdefgh\\n" + FORGED,
        "a" * 129,
    ],
)
def test_hostile_request_id_is_never_logged(api: Api, lines: io.StringIO, given: str) -> None:
    answer = api.request("GET", ENTITIES, headers={"X-Request-ID": given})
    assert answer.status == 200

    def ids() -> set[str | None]:
        return {line.get("requestId") for line in _documents(lines.getvalue())}

    wait_until(lambda: answer.headers["x-request-id"] in ids(), what="the request in the log")
    assert "forged" not in lines.getvalue()
    assert given not in ids()


def test_hostile_requests_leave_clean_lines(api: Api, lines: io.StringIO) -> None:
    forged = FORGED.encode()
    for data in (
        b"GET /%0d%0a" + forged.hex().encode() + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"FORGED / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\x9b2J HTTP/1.1\r\nHost: x\r\n\r\n",
        forged + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: " + forged + b"\r\nUser-Agent: \xe2\x80\xa8" + forged + b"\r\n\r\n",
        b"GET " + ENTITIES.encode() + b"?q=%0a" + forged.hex().encode() + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ):
        api.raw(data, timeout=3)
    api.request("POST", ENTITIES, json_body={"name": FORGED, FORGED: 1})
    api.request("POST", "/auth/login", role=None, json_body={"email": f"a@b.c\n{FORGED}", "password": "x"})
    api.request("GET", ENTITIES, token=f"x{FORGED}")
    _documents(lines.getvalue())
    assert "forged" not in lines.getvalue()
    assert api.tokens[Role.USER] not in lines.getvalue()
