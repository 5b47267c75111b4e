"""Sealing anew: after a new sealing key was put first, what older ones sealed is sealed under it.

The list of sealed columns stands here: a secret that is not in it does not survive its key.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import text

from models.database import Database
from models.deliveries.endpoint_secrets import PREFIX as SECRET_PREFIX
from models.failpoints import Step
from models.identity.sealing import Sealer, Unsealable

_BATCH = 200


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
    """

    column: str
    sealed: int
    lost: int


def reseal(database: Database, sealer: Sealer) -> Iterator[Resealed]:
    """Seal every secret under the present key, in batches of a transaction each; may be run again."""
    for column in SEALED_COLUMNS:
        yield _reseal_column(database, sealer, column)


def _reseal_column(database: Database, sealer: Sealer, column: SealedColumn) -> Resealed:
    read = text(
        f"SELECT {column.key}, {column.column} FROM {column.table} "
        f"WHERE {column.key} > :after "
        f"AND ({column.column} LIKE 'v1.%' OR starts_with({column.column}, :plain)) "
        f"ORDER BY {column.key} LIMIT {_BATCH} FOR NO KEY UPDATE"
    )
    write = text(f"UPDATE {column.table} SET {column.column} = :sealed WHERE {column.key} = :key")
    after, count, lost = "00000000-0000-0000-0000-000000000000", 0, 0
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
        after = str(rows[-1][0])
