"""The API that most would write: FastAPI, an ORM commit, one Celery task per request, every default.

The row is committed as ``queued``; the worker makes it ``ACTIVE`` with a commit of its own. No
authentication, no idempotency, no history: it does less than Waybill, in its own favour. The route is
a plain ``def``, as FastAPI's documentation says for a blocking database driver. It opens its session
itself: as a dependency with ``yield`` it starves at 64 connections, where 40 threads wait for the 15
connections of SQLAlchemy's default pool and none is left to close a session (seen: 500 after 30 s).
It knows the id beforehand, so that nothing is read again after the commit.
"""

from typing import Any
from uuid import UUID, uuid4

from celery import Celery
from fastapi import FastAPI
from pydantic import BaseModel, Field

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


@celery_app.task
def apply_entity(entity_id: str) -> None:
    with Session() as session:
        entity = session.get_one(Entity, UUID(entity_id))
        entity.status = "ACTIVE"
        session.commit()


@app.post("/api/v1/entities", status_code=202)
def create_entity(body: EntityCreate) -> Accepted:
    entity_id = uuid4()
    entity = Entity(id=entity_id, name=body.name, description=body.description, status="queued")
    entity.metadata_ = body.metadata
    with Session() as session:
        session.add(entity)
        session.commit()
    apply_entity.apply_async(args=(str(entity_id),))
    return Accepted(id=entity_id, status="queued")
