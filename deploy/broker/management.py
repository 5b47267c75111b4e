"""RabbitMQ's management API: reading and writing what is administered there. Decides nothing."""

from typing import Any
from urllib.parse import quote, unquote

import orjson
import urllib3

from models.errors import BrokerUnavailable, ConfigurationError

_TIMEOUT_SECONDS = 10
_FORBIDDEN = (401, 403)


class Management:
    """Speaks to one RabbitMQ as one of its users.

    Args:
        url: As ``WAYBILL_BROKER_API_URL`` has it, with credentials.

    Attributes:
        user: Whom we speak as, with ``password``.
    """

    def __init__(self, url: str) -> None:
        parsed = urllib3.util.parse_url(url)
        user, _, password = (parsed.auth or "").partition(":")
        self.user, self.password = unquote(user), unquote(password)
        self._base = parsed._replace(auth=None).url.rstrip("/")
        if not self._base.endswith("/api"):
            self._base += "/api"
        self._headers = urllib3.make_headers(basic_auth=f"{self.user}:{self.password}")

    def get(self, *path: str) -> Any:
        """What stands there; None where nothing does.

        Raises:
            BrokerUnavailable: It does not answer.
            ConfigurationError: This user may not look.
        """
        answer = self._request("GET", path)
        return None if answer.status == 404 else orjson.loads(answer.data)

    def put(self, *path: str, document: dict[str, Any]) -> None:
        """Make it so.

        Raises:
            BrokerUnavailable: It does not answer.
            ConfigurationError: This user may not, or the broker will not have it.
        """
        self._request("PUT", path, document)

    def _request(
        self, method: str, path: tuple[str, ...], document: dict[str, Any] | None = None
    ) -> urllib3.BaseHTTPResponse:
        target = "/".join([self._base, *(quote(part, safe="") for part in path)])
        headers = {**self._headers, "Content-Type": "application/json"}
        body = None if document is None else orjson.dumps(document)
        try:
            answer = urllib3.request(
                method,
                target,
                body=body,
                headers=headers,
                timeout=_TIMEOUT_SECONDS,
                retries=False,
                redirect=False,
            )
        except urllib3.exceptions.HTTPError as error:
            raise BrokerUnavailable(f"the management API does not answer ({type(error).__name__})") from error
        if answer.status in _FORBIDDEN:
            raise ConfigurationError(
                f"the user {self.user or '(none)'} of WAYBILL_BROKER_API_URL may not administer the broker: "
                "name one with the tag administrator there"
            )
        if answer.status >= 300 and answer.status != 404:
            reason = " ".join(answer.data[:300].decode("utf-8", "replace").split())
            raise ConfigurationError(f"the management API answers {answer.status} to {path[0]}: {reason}")
        return answer
