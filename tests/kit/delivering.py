"""Delivering in a test: the worker's pieces put together on a platform, and waited for."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

from celery import Celery

from models.deliveries.endpoint_secrets import new_secret
from models.deliveries.outbox import DeliveryKind, Outbox
from models.settings import Service
from tasks.courier import CallbackCourier
from tasks.deliverer import Deliverer
from tasks.effect_courier import EffectCourier
from tasks.publisher import Publisher
from tasks.sending import Sending
from tasks.service_client import ServiceClient
from tasks.webhook import WebhookSender, trust
from tests.kit.platform import Platform


class Endpoint:
    """A registered callback endpoint of ada's, unless told otherwise."""

    def __init__(self, platform: Platform, url: str, events: Sequence[str] = (), **more: Any) -> None:
        self.secret = new_secret()
        with platform.database.transaction() as connection:
            self.id = platform.container.endpoints.register(
                connection,
                owner_id=more.get("owner_id", platform.ada.id),
                url=url,
                description=None,
                events=events,
                secret=self.secret,
            ).id


class PatientDeliverer:
    """A deliverer that comes back when everything it handed over is settled."""

    def __init__(self, deliverer: Deliverer, sending: Sending) -> None:
        self.deliverer = deliverer
        self.sending = sending

    def deliver(self, ids: Sequence[UUID]) -> None:
        self.deliverer.deliver(ids)
        assert self.sending.wait_idle(30), "sends hang"


def make_sending(
    platform: Platform,
    *,
    sender: WebhookSender | None = None,
    services: Mapping[str, Service] | None = None,
    threads: int = 8,
) -> Sending:
    """What sends over HTTP, with callbacks to loopback allowed."""
    container, outbox = platform.container, Outbox()
    sender = sender or WebhookSender(
        version="test", tls=trust(), allow_private=True, deadline=timedelta(seconds=5)
    )
    clients = {name: ServiceClient(name, one, user_agent="test") for name, one in (services or {}).items()}
    couriers = {
        DeliveryKind.CALLBACK: CallbackCourier(
            sender, container.endpoint_secrets, container.endpoints, outbox
        ),
        DeliveryKind.EFFECT: EffectCourier(platform.registry.effects(), clients, outbox),
    }
    return Sending(platform.database, outbox, couriers, threads=threads, uniform=lambda: 0.5)


@contextmanager
def delivering(platform: Platform, app: Celery, **more: Any) -> Iterator[PatientDeliverer]:
    """A deliverer on ``platform`` and the broker of ``app``."""
    sending, publisher = make_sending(platform, **more), Publisher(app)
    yield PatientDeliverer(Deliverer(platform.database, Outbox(), sending, publisher), sending)
    sending.close(1)
    publisher.close()


def deliveries(platform: Platform, kind: str = "callback") -> list[Any]:
    """The rows of a kind, in the order of what they tell."""
    return platform.rows("SELECT * FROM deliveries WHERE kind = :kind ORDER BY sequences, id", kind=kind)


def ids(platform: Platform, kind: str = "callback") -> list[UUID]:
    """Their ids."""
    return [row.id for row in deliveries(platform, kind)]


def make_due(platform: Platform) -> None:
    """Bring forward whatever is put off."""
    platform.rows("UPDATE deliveries SET announce_at = now() WHERE announce_at IS NOT NULL")
