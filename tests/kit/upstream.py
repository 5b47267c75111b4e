"""An upstream system in tests: publishes to the intake with pika, reads replies and dead letters."""

import json
import urllib.parse
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pika
import urllib3

from tests.kit.waiting import wait_until


@dataclass(frozen=True, slots=True)
class Taken:
    """A message taken from a queue."""

    body: bytes
    properties: pika.BasicProperties
    routing_key: str

    @property
    def document(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def headers(self) -> dict[str, Any]:
        """The headers; empty where there are none."""
        return self.properties.headers or {}


class ManagementApi:
    """RabbitMQ's management API.

    Args:
        url: Where it is, with credentials.
    """

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        self._url = f"http://{parts.hostname}:{parts.port}/api"
        self._headers = urllib3.make_headers(basic_auth=f"{parts.username}:{parts.password}")
        self._http = urllib3.PoolManager()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request; the JSON of its answer."""
        answer = self._http.request(
            method,
            self._url + path,
            body=None if body is None else json.dumps(body),
            headers={**self._headers, "Content-Type": "application/json"},
        )
        if answer.status >= 400:
            raise AssertionError(f"{method} {path}: {answer.status} {answer.data!r}")
        return json.loads(answer.data) if answer.data else None


class Broker:
    """A virtual host of its own on a shared RabbitMQ, administered over the management API.

    Args:
        api_url: The management API, with credentials.
        url: The broker, with credentials.
    """

    def __init__(self, api_url: str, url: str) -> None:
        self.call = ManagementApi(api_url).call
        self.vhost = f"test-{uuid.uuid4().hex[:10]}"
        self._broker = urllib.parse.urlsplit(url)
        self.port = self._broker.port or 0
        self.user = self._broker.username or ""
        self._password = self._broker.password or ""
        self.call("PUT", f"/vhosts/{self.vhost}", {})
        self._permit(self.user)

    def url(self, port: int | None = None) -> str:
        """The URL of this virtual host."""
        return f"amqp://{self.user}:{self._password}@127.0.0.1:{port or self.port}/{self.vhost}"

    def add_user(self, name: str) -> None:
        """Make a broker user whose password is its name."""
        self.call("PUT", f"/users/{name}", {"password": name, "tags": ""})
        self._permit(name)

    def connect(self, user: str | None = None) -> "Upstream":
        """Connect as ``user``, by default the one who administers."""
        name = user or self.user
        credentials = pika.PlainCredentials(name, user or self._password)
        parameters = pika.ConnectionParameters("127.0.0.1", self.port, self.vhost, credentials)
        return Upstream(pika.BlockingConnection(parameters), name)

    def unsettled(self, queue: str) -> int:
        """Messages in ``queue``, delivered or not, that nobody has acknowledged."""
        found = self.call("GET", f"/queues/{self.vhost}/{queue}")
        return int(found.get("messages", 0))

    def wipe(self) -> None:
        """Lose everything in the virtual host; its administrator may use it again."""
        self.delete()
        self.call("PUT", f"/vhosts/{self.vhost}", {})
        self._permit(self.user)

    def delete(self) -> None:
        """Delete the virtual host with everything in it."""
        self.call("DELETE", f"/vhosts/{self.vhost}")

    def _permit(self, user: str) -> None:
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        self.call("PUT", f"/permissions/{self.vhost}/{user}", everything)


class Upstream:
    """One publisher with a reply queue of its own.

    Args:
        connection: Its connection.
        user: Its broker user, sent as ``user_id``.
    """

    def __init__(self, connection: pika.BlockingConnection, user: str) -> None:
        self._connection = connection
        self._user = user
        self.channel = connection.channel()
        self.channel.confirm_delivery()
        self.reply_queue: str = self.channel.queue_declare("", exclusive=True).method.queue

    def publish(
        self,
        routing_key: str,
        body: bytes | dict[str, Any],
        *,
        headers: dict[str, Any] | None = None,
        **properties: Any,
    ) -> str:
        """Publish to the intake, as JSON with a new message id unless told otherwise; the message id."""
        given: dict[str, Any] = {
            "message_id": str(uuid.uuid4()),
            "content_type": "application/json",
            "user_id": self._user,
            "reply_to": self.reply_queue,
            "delivery_mode": 2,
        }
        given |= properties
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        basic = pika.BasicProperties(headers=headers, **given)
        self.channel.basic_publish("waybill.intake", routing_key, raw, basic, mandatory=True)
        return str(given["message_id"])

    def take(self, queue: str, which: Callable[[Taken], bool] = lambda _: True) -> Taken:
        """Wait for a message in ``queue`` that fits; those that do not are dropped."""

        def taken() -> Taken | None:
            found = self._get(queue)
            return found if found is not None and which(found) else None

        found = wait_until(taken, timeout_seconds=60, what=f"a message in {queue}")
        assert found is not None
        return found

    def reply(self, message_id: str) -> Taken:
        """Wait for the reply to a message."""
        return self.take(self.reply_queue, lambda one: one.properties.correlation_id == message_id)

    def dead_letter(self, message_id: str | None) -> Taken:
        """Wait for the dead letter of a message."""
        return self.take("waybill.dead", lambda one: one.properties.message_id == message_id)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _get(self, queue: str) -> Taken | None:
        method, properties, body = self.channel.basic_get(queue, auto_ack=True)
        return None if method is None else Taken(body, properties, method.routing_key)
