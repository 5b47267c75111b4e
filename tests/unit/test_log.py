"""Log lines are JSON, and hold no secret whoever logged it."""

import json
import logging
import sys
from typing import Any

import pytest

from models.log import REQUEST_ID, LineFormatter, masked

JWT = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiIxMjM0NTYifQ.c2lnbmF0dXJl"
SECRETS = [JWT, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "hunter2hunter2"]


def _line(message: str, *arguments: object, error: bool = False, **extra: Any) -> dict[str, Any]:
    logger = logging.getLogger("waybill.test")
    information = sys.exc_info() if error else None
    record = logger.makeRecord(
        "waybill.test", logging.INFO, "f", 1, message, arguments, information, extra=extra
    )
    line = LineFormatter().format(record)
    assert "\n" not in line
    document: dict[str, Any] = json.loads(line)
    return document


def test_line_has_its_members() -> None:
    token = REQUEST_ID.set("req-12345678")
    try:
        line = _line("applied %d", 3, jobId="j", queue="waybill.jobs")
    finally:
        REQUEST_ID.reset(token)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "INFO",
        "logger": "waybill.test",
        "message": "applied 3",
        "requestId": "req-12345678",
        "jobId": "j",
        "queue": "waybill.jobs",
    }


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {JWT}",
        f"token={JWT}",
        f"sent {JWT} upstream",
        "secret whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "postgresql://waybill:hunter2hunter2@127.0.0.1:5432/waybill is away",
        "amqp://guest:hunter2hunter2@host//",
        "https://hunter2hunter2@example.com/",
        "redis://:p@hunter2hunter2@host/0 is away",
        "postgresql://waybill:a:hunter2hunter2@host/waybill",
        "postgresql://waybill:a/hunter2hunter2@host/waybill",
        "redis://host:6379/0?password=a,hunter2hunter2",
        'password="hunter2hunter2"',
        "password: hunter2hunter2, user: ada",
        '{"accessToken": "hunter2hunter2"}',
        "api_key=hunter2hunter2&x=1",
        "Basic aHVudGVyMmh1bnRlcjI= hunter".replace(" hunter", ""),
    ],
)
def test_secret_in_a_message_is_masked(text: str) -> None:
    line = json.dumps(_line("%s", text, detail=text, nested={"deep": [text]}))
    assert not any(secret in line for secret in [*SECRETS, "aHVudGVyMmh1bnRlcjI"])
    assert "***" in line


@pytest.mark.parametrize(
    "name", ["password", "newPassword", "Authorization", "accessToken", "client_secret", "cookie"]
)
def test_secret_by_its_name_is_masked(name: str) -> None:
    assert masked({name: "hunter2hunter2", "ids": 3}) == {name: "***", "ids": 3}


def test_secret_in_a_traceback_is_masked() -> None:
    try:
        raise ValueError(f"cannot use {JWT}")
    except ValueError:
        line = _line("failed", error=True)
    assert "ValueError" in line["exc_info"]
    assert JWT not in json.dumps(line)


@pytest.mark.parametrize(
    "text",
    [
        "GET /api/v1/entities 200",
        "https://example.com/a@b",
        "https://example.com:8443/a@b",
        "3 jobs in waybill.jobs",
    ],
)
def test_harmless_text_stays(text: str) -> None:
    assert masked(text) == text


def test_injected_line_break_stays_inside_its_line() -> None:
    assert _line("%s", 'x\n{"level": "ERROR"}')["message"] == 'x\n{"level": "ERROR"}'
