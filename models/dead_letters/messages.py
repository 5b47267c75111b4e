"""Messages that Celery or the broker gave up on, kept with what the ledger held of them. No broker."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from models.database import array
from models.ids import new_id
from models.job import to_json

MAX_KEPT_BYTES = 1024 * 1024
"""Of a body; our own are a few KiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadMessage:
    """A message out of the broker's dead-letter queue.

    Attributes:
        digest: The same however often it is collected.
        queue: Where it died.
        reason: The broker's word for it.
        task: Celery's task; None where it is no message of Celery's.
        are_jobs: Whether ``ids`` are those of jobs, not of deliveries.
        ids: What it announced.
        size: Of the whole body, in bytes.
    """

    digest: bytes
    queue: str | None
    reason: str | None
    task: str | None
    are_jobs: bool
    ids: tuple[UUID, ...]
    headers: Mapping[str, Any]
    content_type: str | None
    size: int
    body: bytes


@dataclass(frozen=True, slots=True)
class KeptMessage:
    """A dead message as it is listed."""

    id: UUID
    collected_at: datetime
    queue: str | None
    reason: str | None
    task: str | None
    findings: Mapping[str, int]
    size: int


class DeadMessages:
    """Keeps and lists them. Works inside the caller's transaction."""

    def keep(self, connection: Connection, message: DeadMessage) -> bool:
        """Keep ``message``, with the states that the ledger has of what it announced.

        Returns:
            False where it is kept already.
        """
        states = _JOB_STATES if message.are_jobs else _DELIVERY_STATES
        ids = list(dict.fromkeys(message.ids))
        rows = connection.execute(states, {"ids": array(ids)}).all() if ids else []
        found: dict[str, int] = {row[0]: row[1] for row in rows}
        if missing := len(ids) - sum(found.values()):
            found["unknown"] = missing
        parameters = {
            "id": new_id(),
            "digest": message.digest,
            "queue": message.queue,
            "reason": message.reason,
            "task": message.task,
            "ids": array(ids),
            "findings": to_json(found).decode(),
            "headers": to_json(message.headers).decode(),
            "content_type": message.content_type,
            "size": message.size,
            "body": message.body[:MAX_KEPT_BYTES],
        }
        return connection.execute(_KEEP, parameters).rowcount == 1

    def latest(self, connection: Connection, limit: int) -> Sequence[KeptMessage]:
        """The latest, newest first."""
        return [KeptMessage(*row) for row in connection.execute(_LATEST, {"limit": limit}).all()]


_JOB_STATES = text("SELECT state, count(*) FROM jobs WHERE id = ANY(CAST(:ids AS uuid[])) GROUP BY state")

_DELIVERY_STATES = text(
    "SELECT state, count(*) FROM deliveries WHERE id = ANY(CAST(:ids AS uuid[])) GROUP BY state"
)

_KEEP = text("""
INSERT INTO dead_messages (id, digest, queue, reason, task, ids, findings, headers, content_type, size, body)
VALUES (:id, :digest, :queue, :reason, :task, CAST(:ids AS uuid[]), CAST(:findings AS jsonb),
        CAST(:headers AS jsonb), :content_type, :size, :body)
ON CONFLICT (digest) DO NOTHING
""")

_LATEST = text("""
SELECT id, collected_at, queue, reason, task, findings, size
FROM dead_messages ORDER BY collected_at DESC, id DESC LIMIT :limit
""")
