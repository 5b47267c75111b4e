"""CloudEvents 1.0 as the intake takes them: which mode, and the data inside. Reading only; no AMQP.

Structured mode is the JSON event format (``application/cloudevents+json``); binary mode is headers
``cloudEvents_…`` or ``cloudEvents:…`` (AMQP binding) or ``ce-…`` (RabbitMQ binding, as the official
Python package emits it).
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import orjson

from models import strict_json
from models.errors import Detail, Invalid, UnsupportedMediaType

STRUCTURED = "application/cloudevents+json"
_PREFIXES = ("cloudevents_", "cloudevents:", "ce-")
_REQUIRED = ("id", "source", "type")


def binary_attributes(headers: Mapping[str, Any]) -> dict[str, Any]:
    """The event's attributes among message headers (names in lower case); empty: not a binary event."""
    return {
        name.removeprefix(prefix): value
        for name, value in headers.items()
        for prefix in _PREFIXES
        if name.startswith(prefix)
    }


def check_attributes(attributes: Mapping[str, Any]) -> None:
    """Refuse what is not a CloudEvent 1.0.

    Raises:
        Invalid: Another version, or a required attribute is missing, empty or not text.
    """
    problems = [
        Detail(name, "must be a text that is not empty")
        for name in _REQUIRED
        if not isinstance(attributes.get(name), str) or not attributes[name]
    ]
    if attributes.get("specversion") != "1.0":
        problems.insert(0, Detail("specversion", 'must be "1.0"'))
    if problems:
        raise Invalid("The message is not a CloudEvent 1.0", details=problems)


def structured_data(body: bytes) -> bytes:
    """The data of a structured event as JSON text; empty where it has none.

    Raises:
        Invalid: Not a CloudEvent 1.0 in JSON.
        UnsupportedMediaType: Its data is not JSON.
    """
    event = strict_json.parse(body)
    if not isinstance(event, dict):
        raise Invalid("A CloudEvent is a JSON object")
    check_attributes(event)
    media_type = event.get("datacontenttype")
    if media_type is not None and not is_json(media_type):
        raise UnsupportedMediaType("The event's datacontenttype must be application/json")
    if "data_base64" in event:
        if "data" in event:
            raise Invalid("A CloudEvent has data or data_base64, not both")
        return _decoded(event["data_base64"])
    return b"" if event.get("data") is None else orjson.dumps(event["data"])


def is_json(media_type: object) -> bool:
    """Whether this is ``application/json``, in UTF-8 if it says so."""
    if not isinstance(media_type, str):
        return False
    essence, *parameters = (part.strip().lower() for part in media_type.split(";"))
    charsets = [one.removeprefix("charset=").strip('"') for one in parameters if one.startswith("charset=")]
    return essence == "application/json" and all(one in ("utf-8", "utf8") for one in charsets)


def _decoded(text: object) -> bytes:
    try:
        if isinstance(text, str):
            return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        pass
    raise Invalid("The event's data_base64 is not base64", details=[Detail("data_base64", "must be base64")])
