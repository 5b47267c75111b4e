"""Sealing anew: after a new sealing key was put first, what older ones sealed is sealed under it.

The list of sealed columns stands here: a secret that is neither in it nor in the data of a job does not
survive its key. Of jobs those count that may yet be applied, be it after a redrive: what the others have
is not opened again, and stays as it is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy import Connection, text

from models.database import Database, array
from models.deliveries.endpoint_secrets import PREFIX as SECRET_PREFIX
from models.errors import Contention
from models.failpoints import Step
from models.identity.sealing import Sealer, Unsealable
from models.registry import Registry, Resource

_BATCH = 200
_FIRST = UUID(int=0)


@dataclass(frozen=True, slots=True)
class SealedColumn:
    """A column of secrets.

    Attributes:
        table: Its table.
        column: Its name.
        key: The column that tells its rows apart (a UUID).
        purpose: What a secret is sealed for, before the key: ``<purpose>/<key>``.
        plain_prefix: How secrets begin that were kept before this column was sealed; None: there were none.
    """

    table: str
    column: str
    key: str
    purpose: str
    plain_prefix: str | None = None

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.table}.{self.column}"


SEALED_COLUMNS = (
    SealedColumn("second_factors", "secret", "user_id", "second_factors.secret"),
    SealedColumn("callback_endpoints", "secret", "id", "callback_endpoints.secret", SECRET_PREFIX),
    SealedColumn("callback_endpoints", "previous_secret", "id", "callback_endpoints.secret", SECRET_PREFIX),
)


@dataclass(frozen=True, slots=True)
class Resealed:
    """What became of one column.

    Attributes:
        column: Its name.
        sealed: Secrets that are under the present key now and were not before.
        lost: Secrets that no key opens.
        busy: Jobs that somebody else would not let go of: to be tried again.
        unknown: Jobs of a resource that this process does not serve: which of their members are sealed?
    """

    column: str
    sealed: int
    lost: int
    busy: int = 0
    unknown: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether the older keys can be dropped, as far as this column goes."""
        return not (self.lost or self.busy or self.unknown)


def reseal(database: Database, sealer: Sealer, registry: Registry) -> Iterator[Resealed]:
    """Seal every secret under the present key, in batches of a transaction each; may be run again."""
    for column in SEALED_COLUMNS:
        yield _reseal_column(database, sealer, column)
    with database.snapshot() as connection:
        unknown = connection.execute(_UNKNOWN, {"known": array(one.type.name for one in registry)}).all()
    for resource, count in unknown:
        yield Resealed(f"jobs.payload of {resource}", 0, 0, unknown=count)
    yield _JobSecrets(database, sealer, registry).reseal()


def _reseal_column(database: Database, sealer: Sealer, column: SealedColumn) -> Resealed:
    read = text(
        f"SELECT {column.key}, {column.column} FROM {column.table} "
        f"WHERE {column.key} > :after "
        f"AND ({column.column} LIKE 'v1.%' OR starts_with({column.column}, :plain)) "
        f"ORDER BY {column.key} LIMIT {_BATCH} FOR NO KEY UPDATE"
    )
    write = text(f"UPDATE {column.table} SET {column.column} = :sealed WHERE {column.key} = :key")
    after, count, lost = _FIRST, 0, 0
    while True:
        with database.transaction(Step.RESEAL) as connection:
            rows = connection.execute(read, {"after": after, "plain": column.plain_prefix}).all()
            changes = []
            for key, sealed in rows:
                if sealer.is_current(sealed):
                    continue
                purpose = f"{column.purpose}/{key}"
                is_plain = column.plain_prefix is not None and sealed.startswith(column.plain_prefix)
                try:
                    secret = sealed if is_plain else sealer.open(sealed, purpose)
                    changes.append({"key": key, "sealed": sealer.seal(secret, purpose)})
                except Unsealable:
                    lost += 1
            if changes:
                connection.execute(write, changes)
                count += len(changes)
        if len(rows) < _BATCH:
            return Resealed(column.name, count, lost)
        after = rows[-1][0]


class _JobSecrets:
    """Write-only members in the data of jobs that may yet be applied, as their services sealed them.

    While rows are locked here nobody is waited for, so that no worker, which locks its jobs in the order of
    their lanes, ends in a deadlock. A job that somebody is at is tried again at the end, alone.
    """

    def __init__(self, database: Database, sealer: Sealer, registry: Registry) -> None:
        self._database = database
        self._sealer = sealer
        self._resources = {one.type.name: one for one in registry if one.service.has_secrets}
        self._sealed = self._lost = 0

    def reseal(self) -> Resealed:
        names, after, passed_over = array(self._resources), _FIRST, []
        while True:
            with self._database.transaction(Step.RESEAL) as connection:
                ids = connection.execute(_WAITING, {"after": after, "resources": names}).scalars().all()
                taken = self._reseal(connection, _TAKE_FREE, ids)
            passed_over += [one for one in ids if one not in taken]
            if len(ids) < _BATCH:
                break
            after = ids[-1]
        busy = 0
        for job_id in passed_over:
            try:
                with self._database.transaction(Step.RESEAL) as connection:
                    self._reseal(connection, _TAKE, [job_id])
            except Contention:
                busy += 1
        return Resealed("jobs.payload", self._sealed, self._lost, busy)

    def _reseal(self, connection: Connection, take: Any, job_ids: Sequence[UUID]) -> set[UUID]:
        """Seal anew those of ``job_ids`` that ``take`` gets hold of; which those were."""
        changes, taken = [], set()
        for job_id, resource, resource_id, payload in connection.execute(take, {"ids": array(job_ids)}):
            taken.add(job_id)
            changed = self._changed(self._resources[resource], resource_id, payload)
            if changed is not None:
                changes.append({"id": job_id, "payload": changed})
        if changes:
            connection.execute(_KEEP, changes)
        return taken

    def _changed(self, resource: Resource, resource_id: UUID, payload: str) -> str | None:
        document, count = orjson.loads(payload), 0
        service = resource.service
        for member, column in service.secret_members.items():
            kept = document.get(member)
            if kept is None or self._sealer.is_current(kept):
                continue
            purpose = service.purpose(column, resource_id)
            try:
                if service.is_plain(column, kept):
                    kept = service.kept_of(column, kept)
                else:
                    kept = self._sealer.open(kept, purpose)
                document[member] = self._sealer.seal(kept, purpose)
                count += 1
            except Unsealable:
                self._lost += 1
        self._sealed += count
        return orjson.dumps(document).decode() if count else None


# Each of the three has an index of its own, in which there are no finished jobs.
_MAY_BE_APPLIED = """payload IS NOT NULL AND (
    state IN ('queued', 'retrying') OR state = 'scheduled' OR (state = 'dead' AND discarded_at IS NULL))"""

_WAITING = text(f"""
SELECT id FROM jobs
WHERE id > :after AND resource = ANY(CAST(:resources AS text[])) AND {_MAY_BE_APPLIED}
ORDER BY id LIMIT {_BATCH}
""")

_TAKE = text(f"""
SELECT id, resource, resource_id, CAST(payload AS text) FROM jobs
WHERE id = ANY(CAST(:ids AS uuid[])) AND {_MAY_BE_APPLIED}
ORDER BY id FOR NO KEY UPDATE
""")

_TAKE_FREE = text(f"{_TAKE.text} SKIP LOCKED")

_KEEP = text("UPDATE jobs SET payload = CAST(:payload AS json) WHERE id = :id")

_UNKNOWN = text(f"""
SELECT resource, count(*) FROM jobs
WHERE resource <> ALL(CAST(:known AS text[])) AND {_MAY_BE_APPLIED} AND CAST(payload AS text) LIKE '%"v1.%'
GROUP BY resource ORDER BY resource
""")
