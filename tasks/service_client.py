"""The HTTP client of one third party: URL, headers, time-out, kept connections. Decides nothing."""

from collections.abc import Callable
from datetime import UTC, datetime

import urllib3

from models.deliveries.delivery_policy import Answer
from models.effects import ServiceCall
from models.job import to_json
from models.settings import Service
from tasks.webhook import MAX_ANSWER_BYTES, parse_retry_after


class ServiceClient:
    """Calls one third party over kept connections, from any number of threads. Follows no redirects.

    Args:
        name: As ``WAYBILL_SERVICES`` has it.
        service: Where it is and how it is called.
        user_agent: Who we say we are.
        clock: What time it is, for a ``Retry-After`` that names a date.
    """

    def __init__(
        self,
        name: str,
        service: Service,
        *,
        user_agent: str,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.name = name
        self.at_once = service.at_once
        self._url = urllib3.util.parse_url(service.url)
        self._headers = {
            "User-Agent": user_agent,
            "Accept-Encoding": "identity",
            **{header: value.get_secret_value() for header, value in service.headers.items()},
        }
        self._clock = clock
        self._pool = urllib3.connection_from_url(
            service.url,
            maxsize=service.at_once,
            retries=False,
            timeout=urllib3.Timeout(total=service.timeout_seconds),
        )

    def send(self, call: ServiceCall, key: str) -> Answer:
        """Make ``call`` once under ``key``, by which the service tells a repetition.

        Returns:
            The answer. Whatever goes wrong on the way is one too; its text names the service at most.
        """
        headers = {**self._headers, "Idempotency-Key": key}
        body = None
        if call.json is not None:
            body = to_json(call.json)
            headers["Content-Type"] = "application/json"
        path = (self._url.path or "").rstrip("/") + call.path
        try:
            response = self._pool.urlopen(
                call.method,
                path,
                body=body,
                headers=headers,
                redirect=False,
                assert_same_host=False,
                preload_content=False,
            )
        except urllib3.exceptions.TimeoutError:
            return Answer(None, f"{self.name}: no answer in time")
        except urllib3.exceptions.HTTPError as error:
            return Answer(None, f"{self.name}: cannot be reached ({type(error).__name__})")
        self._finish(response)
        if 200 <= response.status <= 299:
            return Answer(response.status)
        wait = response.headers.get("retry-after")
        rest = None if wait is None else parse_retry_after(wait, self._clock())
        return Answer(response.status, f"{self.name} answered {response.status}", rest)

    @staticmethod
    def _finish(response: urllib3.BaseHTTPResponse) -> None:
        """Read what little there may be, so that the connection serves again; else close it."""
        try:
            response.read(MAX_ANSWER_BYTES)
            if response.read(1):
                response.close()
        except urllib3.exceptions.HTTPError:
            response.close()  # its status stands
        finally:
            response.release_conn()
