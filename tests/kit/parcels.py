"""A resource for tests whose changes call third parties, and that guests know nothing of. Sends nothing.

As with tickets its table is taken out of the shared metadata again; who uses it makes it.
"""

from datetime import datetime
from uuid import UUID

from sqlalchemy import Column, Text

from models.effects import AppliedChange, ServiceCall, ThirdPartyEffect
from models.identity.principals import Action, Reach, Role
from models.job import Operation
from models.resource_type import ResourceType, resource_table
from models.schema import Schema
from models.tables import metadata

TABLE = resource_table("parcels", Column("label", Text, nullable=False))
metadata.remove(TABLE)


class ParcelBody(Schema):
    """Body of a POST or PUT."""

    label: str


class ParcelRead(ParcelBody):
    """What callers see."""

    id: UUID
    version: int
    owner_id: UUID
    created_at: datetime
    updated_at: datetime


def told(change: AppliedChange) -> ServiceCall:
    """The same to each of them."""
    return ServiceCall(path="/parcels", json={"parcel": str(change.resource_id)})


RESOURCE = ResourceType(
    name="parcels",
    table=TABLE,
    create=ParcelBody,
    update=ParcelBody,
    read=ParcelRead,
    permissions={
        Role.ADMIN: {Action.MANAGE: Reach.ALL},
        Role.USER: {Action.READ: Reach.OWN, Action.WRITE: Reach.OWN},
    },
    effects=(
        ThirdPartyEffect(
            name="ship",
            service="carrier",
            call=told,
            fallback=ThirdPartyEffect(name="complain", service="office", call=told),
        ),
        ThirdPartyEffect(
            name="stop", service="warehouse", call=told, operations=frozenset({Operation.DELETE})
        ),
    ),
)
