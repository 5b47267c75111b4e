"""The outbox: deliveries that wait to be sent, claimed by compare-and-set so that nobody sends twice at once.

Rows are written by ``Ledger.finish`` in the transaction of the outcome; here they are claimed, rendered
once, and settled. No sending.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from models.database import array
from models.ids import new_id
from models.job import FINAL, Job, JobState, Operation, to_json
from models.job_rows import job_from
from models.ledger import REANNOUNCE_AFTER

CLAIM = timedelta(seconds=60)
"""A claimed delivery is announced again after this, unless it was settled: longer than any send may take."""


RESOLVED = "resolved"
"""Last word of the key of the event that says: this dead letter needs nobody's attention any more."""

_ENDS = ",".join(sorted(str(state) for state in FINAL - {JobState.DEAD}))


class DeliveryKind(StrEnum):
    """Which way an outcome leaves."""

    CALLBACK = "callback"
    REPLY = "reply"
    EVENTS = "events"
    NOTICE = "notice"
    EFFECT = "effect"

    @property
    def is_sent_over_http(self) -> bool:
        """Whether it goes to a receiver that may be slow or dead; the others go to our broker."""
        return self in (DeliveryKind.CALLBACK, DeliveryKind.EFFECT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A claimed delivery.

    Attributes:
        job_id: Of a callback, reply or effect.
        sequences: The job events that it announces; one, except for ``events``.
        state_told: The state of that one event; None for ``events``.
        body: What is sent, the same at every attempt; None for ``events``, and for an effect not yet written.
        target: The effect, or the routing key of a notice.
        resource: Of the job.
        error: Of the last attempt; of a fallback not yet tried, why it became necessary.
        secrets: Of the endpoint, sealed: the present one, and the previous one while it still signs.
        attempts: Made before this one.
        age: Since it was written, or asked for again.
        renewed_at: When it was last asked for again.
    """

    id: UUID
    kind: DeliveryKind
    job_id: UUID | None
    sequences: tuple[int, ...]
    state_told: JobState | None
    body: bytes | None
    attempts: int
    age: timedelta
    renewed_at: datetime | None
    now: datetime
    claimed_until: datetime
    reply_to: str | None
    correlation_id: str | None
    target: str | None
    resource: str | None
    error: str | None
    endpoint_id: UUID | None
    url: str | None
    secrets: tuple[str, ...]
    is_disabled: bool

    @property
    def webhook_id(self) -> str:
        """Stable over retries and resends: one for each outcome."""
        return f"msg_{self.job_id.hex if self.job_id else ''}_{self.sequences[0]}"


@dataclass(frozen=True, slots=True)
class ToldEvent:
    """A job event, with the job as it stood then."""

    job: Job
    at: datetime


class Outbox:
    """Claims and settles deliveries. Works inside the caller's transaction."""

    def claim(self, connection: Connection, delivery_ids: Sequence[UUID]) -> list[Delivery]:
        """Claim those of ``delivery_ids`` that are due; render the bodies of those that have none yet."""
        rows = connection.execute(_CLAIM, {"ids": array(delivery_ids), "claim": CLAIM}).all()
        unrendered = [row for row in rows if row.body is None and row.kind in _RENDERED]
        bodies = self._render(connection, unrendered) if unrendered else {}
        return [_delivery(row, bodies.get(row.id, row.body)) for row in rows]

    def _render(self, connection: Connection, rows: Sequence[Any]) -> dict[UUID, bytes]:
        events = self.events(connection, [row.sequences[0] for row in rows])
        bodies = {
            row.id: _body(DeliveryKind(row.kind), events[row.sequences[0]])
            for row in rows
            if row.sequences[0] in events  # its job may be past retention
        }
        document = to_json([{"id": key, "body": "\\x" + body.hex()} for key, body in bodies.items()]).decode()
        connection.execute(_KEEP_BODIES, {"bodies": document})
        return bodies

    def event_keys(self, connection: Connection, sequences: Sequence[int]) -> dict[str, list[int]]:
        """Job events by the routing keys that announce them: ``{resource}.{operation}.{state}``.

        The end of a redriven job that is not dead again, and a discard, also (only) have a key that ends
        in :data:`RESOLVED`.
        """
        keys: dict[str, list[int]] = {}
        for key, sequence in connection.execute(_EVENT_KEYS, {"sequences": array(sequences)}).all():
            keys.setdefault(key, []).append(sequence)
        return keys

    def events(self, connection: Connection, sequences: Sequence[int]) -> dict[int, ToldEvent]:
        """Job events by their sequence, each with its job as it stood then."""
        told: dict[int, ToldEvent] = {}
        for row in connection.execute(_EVENTS, {"sequences": array(sequences)}).all():
            told[row.sequence] = ToldEvent(job_from(row[1:]), row.at)
        return told

    def keep_body(self, connection: Connection, delivery: Delivery, body: bytes) -> Delivery:
        """Keep what an effect sends, so that every attempt sends the same."""
        document = to_json([{"id": delivery.id, "body": "\\x" + body.hex()}]).decode()
        connection.execute(_KEEP_BODIES, {"bodies": document})
        return replace(delivery, body=body)

    def extend(self, connection: Connection, delivery: Delivery) -> Delivery | None:
        """Claim ``delivery`` anew just before it is sent; None where somebody else has it by now.

        It may have waited for its turn: the clock, and its endpoint, are read afresh.
        """
        row = connection.execute(_EXTEND, {"claim": CLAIM} | _claim_of(delivery)).one_or_none()
        if row is None:
            return None
        return replace(
            delivery,
            claimed_until=row.announce_at,
            age=delivery.age + (row.now - delivery.now),
            now=row.now,
            url=row.url,
            secrets=_secrets(row),
            is_disabled=row.disabled is not False,
        )

    def delivered(
        self, connection: Connection, deliveries: Sequence[Delivery], *, status: int | None = None
    ) -> None:
        """Settle deliveries that arrived, whoever has claimed them by now.

        One that was asked for again since its claim is left to be sent again.
        """
        sent = to_json([{"id": one.id, "renewed_at": one.renewed_at} for one in deliveries])
        connection.execute(_DELIVERED, {"sent": sent.decode(), "status": status})

    def retry(
        self, connection: Connection, delivery: Delivery, *, delay: timedelta, error: str, status: int | None
    ) -> None:
        """Put a failed attempt off by ``delay``, unless its claim is lost."""
        parameters = {
            "attempts": delivery.attempts + 1,
            "delay": delay,
            "error": error,
            "status": status,
        }
        connection.execute(_RETRY, parameters | _claim_of(delivery))

    def split(self, connection: Connection, delivery: Delivery, sequences: Sequence[int]) -> Delivery | None:
        """Make some of the events of a claimed delivery one of their own, claimed alike.

        Returns:
            That one; None where the claim is lost.
        """
        parameters = {"sequences": array(sequences)} | _claim_of(delivery)
        made = connection.execute(_SPLIT, parameters).scalar_one_or_none()
        return None if made is None else replace(delivery, id=made, sequences=tuple(sequences))

    def park(self, connection: Connection, deliveries: Sequence[Delivery], until: datetime) -> None:
        """Put claimed deliveries off, burning no attempt.

        One whose claim ran out, and which somebody else has by now, is left to that one.
        """
        claims = to_json([{"id": one.id, "claimed_until": one.claimed_until} for one in deliveries])
        connection.execute(_PARK, {"claims": claims.decode(), "until": until})

    def give_up(self, connection: Connection, delivery: Delivery, *, error: str, status: int | None) -> bool:
        """Settle a delivery that failed for good; False where its claim is lost, and nothing was settled."""
        parameters = {"error": error, "status": status} | _claim_of(delivery)
        return connection.execute(_GIVE_UP, parameters).rowcount == 1

    def add_effect(self, connection: Connection, delivery: Delivery, effect: str, failure: str) -> None:
        """Write a further effect of the same job, due at once, and what made it necessary."""
        parameters = {
            "id": new_id(),
            "job_id": delivery.job_id,
            "sequences": array(delivery.sequences),
            "effect": effect,
            "failure": failure,
        }
        connection.execute(_ADD_EFFECT, parameters)

    def add_notice(self, connection: Connection, key: str, event: Mapping[str, Any]) -> UUID:
        """Write an event about the platform itself, published under ``key``; its id is the delivery's."""
        notice_id = new_id()
        body = to_json({"specversion": "1.0", "id": str(notice_id), **event})
        connection.execute(_ADD_NOTICE, {"id": notice_id, "key": key, "body": body})
        return notice_id

    def waiting(self, connection: Connection) -> list[tuple[DeliveryKind, str, int, float]]:
        """What is neither delivered nor given up: kind, state, how many, age of the oldest in seconds."""
        rows = connection.execute(_WAITING).all()
        return [(DeliveryKind(row[0]), row[1], row[2], float(row[3])) for row in rows]

    def due(self, connection: Connection, limit: int, *, only_over_http: bool = False) -> list[UUID]:
        """Up to ``limit`` deliveries that are due and were not announced lately, oldest first."""
        kinds = [kind for kind in DeliveryKind if kind.is_sent_over_http or not only_over_http]
        parameters = {"limit": limit, "again": REANNOUNCE_AFTER, "kinds": kinds}
        return [row[0] for row in connection.execute(_DUE, parameters).all()]


_RENDERED = (DeliveryKind.CALLBACK, DeliveryKind.REPLY)
"""Kinds whose body follows from the event alone."""


def _body(kind: DeliveryKind, event: ToldEvent) -> bytes:
    job = event.job
    if kind is DeliveryKind.REPLY:
        return to_json(job.document(with_result=job.operation is Operation.READ))
    message = {"type": f"job.{job.state}", "timestamp": event.at, "data": job.document(with_result=False)}
    return to_json(message)


def _claim_of(delivery: Delivery) -> dict[str, Any]:
    return {"id": delivery.id, "claimed_until": delivery.claimed_until}


def _delivery(row: Any, body: bytes | None) -> Delivery:
    return Delivery(
        id=row.id,
        kind=DeliveryKind(row.kind),
        job_id=row.job_id,
        sequences=tuple(row.sequences),
        state_told=JobState(row.state_told) if row.state_told else None,
        body=bytes(body) if body is not None else None,
        attempts=row.attempts,
        age=row.now - (row.renewed_at or row.created_at),
        renewed_at=row.renewed_at,
        now=row.now,
        claimed_until=row.announce_at,
        reply_to=row.reply_to,
        target=row.target,
        resource=row.resource,
        error=row.error,
        correlation_id=row.correlation_id,
        endpoint_id=row.endpoint_id,
        url=row.url,
        secrets=_secrets(row),
        is_disabled=row.disabled is not False,
    )


def _secrets(row: Any) -> tuple[str, ...]:
    still_signs = row.previous_secret_until is not None and row.previous_secret_until > row.now
    secrets = (row.secret, row.previous_secret if still_signs else None)
    return tuple(secret for secret in secrets if secret)


_CLAIM = text("""
WITH due AS MATERIALIZED (
    SELECT id FROM deliveries
    WHERE id = ANY(CAST(:ids AS uuid[])) AND announce_at <= now()
    ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
), mine AS (
    UPDATE deliveries AS d SET announce_at = now() + :claim, updated_at = now()
    FROM due WHERE d.id = due.id
    RETURNING d.*
)
SELECT m.id, m.kind, m.job_id, m.sequences, m.body, m.attempts, m.created_at, m.renewed_at, m.announce_at,
       m.reply_to, m.target, m.endpoint_id,
       t.state AS state_told, j.correlation_id, j.resource, m.error,
       e.url, e.secret, e.previous_secret, e.previous_secret_until, e.disabled, now() AS now
FROM mine AS m
LEFT JOIN job_events AS t ON m.kind <> 'events' AND t.sequence = m.sequences[1]
LEFT JOIN jobs AS j ON j.id = m.job_id
LEFT JOIN callback_endpoints AS e ON e.id = m.endpoint_id
ORDER BY m.sequences[1]
""")

_KEEP_BODIES = text("""
UPDATE deliveries AS d SET body = r.body
FROM json_to_recordset(CAST(:bodies AS json)) AS r(id uuid, body bytea)
WHERE d.id = r.id AND d.body IS NULL
""")

_EVENTS = text("""
SELECT t.sequence, j.id, t.state, j.operation, j.resource, j.resource_id, j.principal_id,
       COALESCE(CAST(t.detail ->> 'attempt' AS int), j.attempt), j.priority, j.created_at,
       CASE WHEN t.detail ? 'runAt' THEN CAST(t.detail ->> 'runAt' AS timestamptz) ELSE j.run_at END,
       t.at, CASE WHEN t.detail ? 'expiresAt' THEN CAST(t.detail ->> 'expiresAt' AS timestamptz)
                  ELSE j.expires_at END,
       CASE WHEN t.state = 'succeeded' THEN j.version END,
       CASE WHEN t.state = 'succeeded' THEN CAST(j.result AS text) END,
       CASE WHEN t.detail ? 'error' THEN NULLIF(t.detail -> 'error', 'null')
            WHEN t.state <> 'succeeded' THEN j.error END,
       j.request_id,
       jsonb_path_query_array(j.attempts, '$[*] ? (@.generation <= $then)',
                              jsonb_build_object('then', past.generation)),
       past.generation, j.parent_id, t.sequence
FROM job_events AS t JOIN jobs AS j ON j.id = t.job_id
CROSS JOIN LATERAL (
    SELECT COALESCE(CAST(t.detail ->> 'generation' AS int), j.generation)
) AS past(generation)
WHERE t.sequence = ANY(CAST(:sequences AS bigint[])) ORDER BY t.sequence
""")

_EVENT_KEYS = text(f"""
SELECT j.resource || '.' || j.operation || '.' || told.word, t.sequence
FROM job_events AS t JOIN jobs AS j ON j.id = t.job_id
CROSS JOIN LATERAL (
    SELECT t.state WHERE t.detail IS NULL OR NOT t.detail ? 'discarded'
    UNION ALL
    SELECT '{RESOLVED}' WHERE t.detail ? 'discarded' OR (j.generation > 1 AND t.state = ANY('{{{_ENDS}}}'))
) AS told(word)
WHERE t.sequence = ANY(CAST(:sequences AS bigint[])) ORDER BY t.sequence
""")

_DELIVERED = text("""
WITH done AS (
    UPDATE deliveries AS d
    SET state = 'delivered', attempts = d.attempts + 1, announce_at = NULL, response_status = :status,
        error = NULL, updated_at = now()
    FROM json_to_recordset(CAST(:sent AS json)) AS r(id uuid, renewed_at timestamptz)
    WHERE d.id = r.id AND d.renewed_at IS NOT DISTINCT FROM r.renewed_at
    RETURNING d.endpoint_id
)
UPDATE callback_endpoints AS e SET failing_since = NULL
FROM done WHERE e.id = done.endpoint_id AND e.failing_since IS NOT NULL
""")

_RETRY = text("""
WITH put_off AS (
    UPDATE deliveries
    SET state = 'retrying', attempts = :attempts, announce_at = now() + :delay, response_status = :status,
        error = :error, updated_at = now()
    WHERE id = :id AND announce_at = :claimed_until
    RETURNING endpoint_id
)
UPDATE callback_endpoints AS e SET failing_since = now()
FROM put_off WHERE e.id = put_off.endpoint_id AND e.failing_since IS NULL
""")

_SPLIT = text("""
WITH whole AS (
    UPDATE deliveries SET sequences = ARRAY(
        SELECT one FROM unnest(sequences) AS one WHERE one <> ALL(CAST(:sequences AS bigint[])) ORDER BY one)
    WHERE id = :id AND announce_at = :claimed_until
    RETURNING kind, state, attempts, error, created_at, announce_at
)
INSERT INTO deliveries (id, kind, sequences, state, attempts, error, created_at, announce_at)
SELECT waybill_uuid7(), kind, CAST(:sequences AS bigint[]), state, attempts, error, created_at, announce_at
FROM whole RETURNING id
""")

_PARK = text("""
UPDATE deliveries AS d SET announce_at = :until, updated_at = now()
FROM json_to_recordset(CAST(:claims AS json)) AS r(id uuid, claimed_until timestamptz)
WHERE d.id = r.id AND d.announce_at = r.claimed_until
""")

_GIVE_UP = text("""
UPDATE deliveries
SET state = 'failed', attempts = attempts + 1, announce_at = NULL, response_status = :status,
    error = :error, updated_at = now()
WHERE id = :id AND announce_at = :claimed_until
""")

_ADD_EFFECT = text("""
INSERT INTO deliveries (id, kind, job_id, sequences, target, error, announce_at)
VALUES (:id, 'effect', :job_id, CAST(:sequences AS bigint[]), :effect, :failure, now())
""")

_ADD_NOTICE = text("""
INSERT INTO deliveries (id, kind, sequences, target, body, announce_at)
VALUES (:id, 'notice', '{}', :key, :body, now())
""")

_WAITING = text("""
SELECT kind, state, count(*), extract(epoch FROM now() - min(created_at))
FROM deliveries WHERE announce_at IS NOT NULL GROUP BY kind, state
""")

_EXTEND = text("""
WITH mine AS (
    UPDATE deliveries SET announce_at = clock_timestamp() + :claim, updated_at = now()
    WHERE id = :id AND announce_at = :claimed_until RETURNING announce_at, endpoint_id
)
SELECT m.announce_at, e.url, e.secret, e.previous_secret, e.previous_secret_until, e.disabled, now() AS now
FROM mine AS m LEFT JOIN callback_endpoints AS e ON e.id = m.endpoint_id
""")

_DUE = text("""
WITH due AS MATERIALIZED (
    SELECT id FROM deliveries
    WHERE announce_at <= now()  -- those that were announced when they were written get a moment
            - CASE WHEN attempts = 0 AND kind <> 'events' THEN interval '2 seconds' ELSE interval '0' END
      AND (announced_at IS NULL OR announced_at < announce_at OR announced_at < now() - :again)
      AND kind = ANY(CAST(:kinds AS text[]))
    ORDER BY announce_at LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE deliveries AS d SET announced_at = now() FROM due WHERE d.id = due.id RETURNING d.id
""")
