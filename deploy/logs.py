"""The launcher's own log lines: JSON, like everybody else's. Not what it says to the person in front."""

import logging
import sys

from pythonjsonlogger.json import JsonFormatter


def log_as_json(level: str) -> None:
    """Send log records to standard error, one JSON object a line: time, level, logger, message, fields."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter(
            "{asctime}{levelname}{name}{message}",
            style="{",
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
