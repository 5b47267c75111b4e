"""Logging: JSON lines on standard output, secrets masked whatever anybody logs. No events are named here."""

import logging
import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from pythonjsonlogger.json import JsonFormatter

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The request that is being served; logged with every line."""

MASK = "***"
_SECRET_NAME = re.compile(
    r"authorization|passw(or)?d|secret|token|api[-_]?key|credential|cookie|private[-_]?key|recovery[-_]?codes?|\botp(auth)?",
    re.IGNORECASE,
)
_UNPRINTABLE = re.compile(r"[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
"""What JSON lets stand: terminals' control characters, other line ends, marks of direction, surrogates."""

_SECRETS = (
    (re.compile(r"\bwhsec_[A-Za-z0-9+/=_-]+"), "whsec_" + MASK),
    (re.compile(r"\bwbr_[A-Za-z0-9_-]+"), "wbr_" + MASK),
    (re.compile(r"\botpauth://[^\s\"']+"), "otpauth://" + MASK),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]+\.?[A-Za-z0-9_-]*"), MASK),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}"), r"\1 " + MASK),
    (  # up to the last @ of the authority; beyond a / only where what stands before it is no port
        re.compile(
            r"([A-Za-z][A-Za-z0-9+.-]{0,30}://)"
            r"(?:[^\s/'\"]*|[^\s/:@'\"]*:(?!\d{1,5}/)[^\s@'\"]{1,256})@"
        ),
        r"\1" + MASK + "@",
    ),
    (
        re.compile(r"(?i)([?&][\w-]*(?:password|passwd|secret|token|api_?key|otp)=)[^\s&'\"]+"),
        r"\1" + MASK,
    ),
    (
        re.compile(
            r"(?i)([\"']?\b[\w-]*(?:password|passwd|secret|token|api_?key|otp)\b[\"']?\s*[=:]\s*)"
            r"(\"[^\"]*\"|'[^']*'|[^\s,;&})\]]+)"
        ),
        r"\1" + MASK,
    ),
)


def configure(level: str) -> None:
    """Send everything that is logged in this process, at ``level`` or above, to standard output as JSON."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(LineFormatter())
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    for name in ("uvicorn.error", "alembic.runtime.migration"):  # what they say at INFO is of no use
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(level)))


class LineFormatter(JsonFormatter):
    """One event a line: ``time, level, logger, message``, ``requestId`` and ``jobId`` where known, extras."""

    def __init__(self) -> None:
        super().__init__(["message"], json_ensure_ascii=False)

    def format(self, record: logging.LogRecord) -> str:
        """See :class:`JsonFormatter`; nothing in the line ends it, moves a cursor or turns text around."""
        return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", super().format(record))

    def add_fields(
        self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]
    ) -> None:
        """See :class:`JsonFormatter`."""
        log_data["time"] = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        log_data["level"] = record.levelname
        log_data["logger"] = record.name
        log_data["message"] = record.message
        if (request_id := REQUEST_ID.get()) is not None:
            log_data["requestId"] = request_id
        super().add_fields(log_data, record, message_dict)
        log_data.pop("taskName", None)
        log_data.pop("color_message", None)

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """See :class:`JsonFormatter`."""
        return {name: masked(value, name) for name, value in log_data.items()}


def names_a_secret(name: str) -> bool:
    """Whether what goes by this name should not be written down."""
    return _SECRET_NAME.search(name) is not None


def masked(value: Any, name: str = "") -> Any:
    """``value`` without what looks secret, by its name or by its looks."""
    if name and names_a_secret(name):
        return MASK
    if isinstance(value, str):
        for pattern, replacement in _SECRETS:
            value = pattern.sub(replacement, value)
        return value
    if isinstance(value, bytes):
        return masked(value.decode("utf-8", "replace"))
    if isinstance(value, Mapping):
        return {str(key): masked(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [masked(item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return masked(str(value))
