"""Where RabbitMQ is reached, and what it still holds of ours. Breaks nothing."""

from contextlib import closing

import pika
import urllib3

from tasks.names import DEAD_INTAKE
from tests.kit.upstream import ManagementApi

ANSWER_SECONDS = 5.0


def full_queues(broker: ManagementApi) -> list[str]:
    """Our queues that hold a message, by what RabbitMQ counts (it counts every 5 s).

    But for that of dead letters, which keeps what upstream was refused.
    """
    try:
        queues = broker.call("GET", "/queues")
    except urllib3.exceptions.HTTPError as error:
        return [f"the broker's management API does not answer: {error}"]
    return [
        f"queue {one['name']} holds {one.get('messages', 'unknown')} messages"
        for one in queues
        if one["name"].startswith("waybill.")
        and one["name"] != DEAD_INTAKE
        and one.get("messages", "unknown")
    ]


def nodes_of(url: str) -> list[pika.URLParameters]:
    """Where a broker is reached: each of the nodes whose URLs ``;`` parts. Nobody waits for one for long."""
    nodes = [pika.URLParameters(one) for one in url.split(";")]
    for one in nodes:
        one.socket_timeout = one.blocked_connection_timeout = ANSWER_SECONDS
    return nodes


def dead_letters(url: str) -> set[str]:
    """Ids of the messages of upstream that were refused; takes them away."""
    found = set()
    with closing(pika.BlockingConnection(nodes_of(url))) as connection:
        channel = connection.channel()
        while True:
            method, properties, _ = channel.basic_get(DEAD_INTAKE, auto_ack=True)
            if method is None:
                return found
            found.add(str(properties.message_id))
