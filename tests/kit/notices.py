"""Notices: a resource with rights of its own. Users read everybody's and write their own, guests nothing."""

from uuid import UUID

from pydantic import Field
from sqlalchemy import Column, String

from models.identity.principals import Action, Reach, Role
from models.resource_type import ResourceType, resource_table
from models.schema import Schema
from models.tables import metadata

TABLE = resource_table("notices", Column("name", String(40), nullable=False))
metadata.remove(TABLE)


class Notice(Schema):
    """Body of a POST and PUT."""

    name: str = Field(min_length=1, max_length=40)


class NoticeRead(Notice):
    """What callers see."""

    id: UUID
    owner_id: UUID
    version: int


RESOURCE = ResourceType(
    name="notices",
    table=TABLE,
    create=Notice,
    update=Notice,
    read=NoticeRead,
    permissions={
        Role.ADMIN: {Action.READ: Reach.ALL, Action.DELETE: Reach.ALL},
        Role.USER: {Action.READ: Reach.ALL, Action.WRITE: Reach.OWN},
    },
)
