"""The API that most would write: FastAPI, an ORM commit, one Celery task per request, every default.

The row is committed as ``queued``; the worker makes it ``ACTIVE`` with a commit of its own. No
authentication, no idempotency, no history: it does less than Waybill, in its own favour. The route is
a plain ``def``, as FastAPI's documentation says for a blocking database driver.
"""

from collections.abc import Iterator
from typing import Annotated, Any
from uuid import UUID

from celery import Celery
from fastapi import Depends, FastAPI
from pydantic import BaseModel, Field
from sqlalchemy import orm

from tests.bench.peers.entity import BROKER_URL, Entity, Session

celery_app = Celery("fastapi_peer", broker=BROKER_URL)
app = FastAPI()


class EntityCreate(BaseModel):
    """What a client sends."""

    name: str = Field(min_length=1, max_length=255)
    description: str | None = None
    metadata: dict[str, Any] | None = None


class Accepted(BaseModel):
    """What a client gets."""

    id: UUID
    status: str


def open_session() -> Iterator[orm.Session]:
    with Session() as session:
        yield session


@celery_app.task
def apply_entity(entity_id: str) -> None:
    with Session() as session:
        entity = session.get_one(Entity, UUID(entity_id))
        entity.status = "ACTIVE"
        session.commit()


@app.post("/api/v1/entities", status_code=202)
def create_entity(body: EntityCreate, session: Annotated[orm.Session, Depends(open_session)]) -> Accepted:
    entity = Entity(
        name=body.name, description=body.description, metadata_=body.metadata, status="queued"
    )
    session.add(entity)
    session.commit()
    apply_entity.apply_async(args=[str(entity.id)])
    return Accepted(id=entity.id, status=entity.status)
