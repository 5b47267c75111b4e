"""What RabbitMQ still holds of ours. Breaks nothing."""

from contextlib import closing

import pika
import urllib3

from tasks.names import DEAD_INTAKE
from tests.kit.upstream import ManagementApi


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


def dead_letters(url: str) -> set[str]:
    """Ids of the messages of upstream that were refused; takes them away."""
    found = set()
    with closing(pika.BlockingConnection(pika.URLParameters(url))) as connection:
        channel = connection.channel()
        while True:
            method, properties, _ = channel.basic_get(DEAD_INTAKE, auto_ack=True)
            if method is None:
                return found
            found.add(str(properties.message_id))
