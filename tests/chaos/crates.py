"""Crates: the machine's own resource, with what entities lack. Each is shipped by a third party, once.

One that is too heavy makes the service stumble, and its job is dead at once; a lethal one kills its worker.
What is written on it may be that it puzzles our own code at first, or that its insurance cannot wait.
``arena.py`` names this module in ``WAYBILL_RESOURCES``, and the third party in ``WAYBILL_SERVICES``.
"""

import os
import signal
from datetime import timedelta
from uuid import UUID

from sqlalchemy import Column, Integer, String

from models.effects import AppliedChange, ServiceCall, ThirdPartyEffect
from models.resource_type import ResourceType, resource_table
from models.retry import RetryPolicy
from models.schema import Schema
from models.service import ResourceService, Row
from models.tables import metadata

DEPOT = "depot"
"""The third party, and the first segment of its path."""
SHIP = "ship"
"""The effect of every crate."""
INSURE = "insure"
"""The effect of hasty ones: is given up soon, and may so never come to the third party."""
HASTY = "hasty"
PUZZLING = "puzzling"
"""Each process fails to build the first call for one."""
TOO_HEAVY = 13
LETHAL = 666

TABLE = resource_table(
    "crates", Column("label", String(80), nullable=False), Column("weight", Integer, nullable=False)
)
metadata.remove(TABLE)  # no other test's migration shall miss it


class CrateUpdate(Schema):
    """Body of a PUT."""

    label: str
    weight: int


class CrateCreate(CrateUpdate):
    """Body of a POST."""


class CrateRead(CrateUpdate):
    """What callers see."""

    id: UUID
    version: int


class CrateService(ResourceService):
    """Stumbles over what is too heavy, and dies of what is lethal."""

    def check(self, before: Row | None, after: Row) -> None:
        """See :class:`~models.service.ResourceService`."""
        if after["weight"] == LETHAL:
            os.kill(os.getpid(), signal.SIGKILL)
        if after["weight"] == TOO_HEAVY:
            raise RuntimeError("a crate was too heavy")


_puzzled: set[UUID] = set()


def shipping(change: AppliedChange) -> ServiceCall:
    """What the depot is told."""
    if (change.instance or {}).get("label") == PUZZLING and change.job_id not in _puzzled:
        _puzzled.add(change.job_id)
        raise RuntimeError("a crate was puzzling")
    return ServiceCall(path="/shipments", json={"crate": str(change.resource_id)})


def insuring(change: AppliedChange) -> ServiceCall | None:
    """What it is told of hasty ones."""
    if (change.instance or {}).get("label") != HASTY:
        return None
    return ServiceCall(path="/policies", json={"crate": str(change.resource_id)})


RESOURCE = ResourceType(
    name="crates",
    table=TABLE,
    create=CrateCreate,
    update=CrateUpdate,
    read=CrateRead,
    service=CrateService,
    searchable=("label",),
    sortable=("created_at",),
    effects=(
        ThirdPartyEffect(name=SHIP, service=DEPOT, call=shipping),
        ThirdPartyEffect(name=INSURE, service=DEPOT, call=insuring, give_up_after=timedelta(seconds=3)),
    ),
    retry=RetryPolicy(max_attempts=1),
)
