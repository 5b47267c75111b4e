"""``python -m tests.bench.retention``: a long run in short; do the tables and their indexes stop growing?

Jobs are taken in with an idempotency key, applied and announced by a callback as fast as this process can,
while a pruner deletes what ended a moment ago. Time is compressed: what is kept for days is kept for
seconds, so autovacuum looks every second, not every minute.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from pathlib import Path
from statistics import quantiles
from uuid import UUID

import click
import psycopg

from deploy.postgres_server import PostgresServer
from models import retention as rules
from models.deliveries.outbox import Outbox
from models.job import Operation
from models.retention import Retention
from models.settings import Settings
from tasks.pruner import Pruner
from tests.kit.ageing import many_finished
from tests.kit.delivering import Endpoint
from tests.kit.platform import Platform
from tests.kit.servers import fresh_database, postgres_server, temporary_data_directory

TABLES = ("jobs", "job_events", "deliveries", "idempotency_keys")
BATCH = 100
INSTANCES = 500
SAMPLES = 24
MOST_GROWTH = 1.15
"""Of the greatest size in the last third of a run over that in the third before."""

_SIZES = """
SELECT c.relname, pg_table_size(c.oid), pg_indexes_size(c.oid), s.n_live_tup, s.n_dead_tup, s.autovacuum_count
FROM pg_class AS c JOIN pg_stat_user_tables AS s ON s.relid = c.oid WHERE c.relname = ANY(:tables)
"""


class Feeder(threading.Thread):
    """Makes jobs, and sees them through, until told to stop."""

    def __init__(self, platform: Platform) -> None:
        super().__init__(name="feeder", daemon=True)
        self._platform = platform
        self.stopping = threading.Event()
        self.made = 0

    def run(self) -> None:
        platform, outbox, applier = self._platform, Outbox(), self._platform.applier()
        Endpoint(platform, "https://receiver.example/hook", events=["job.succeeded"])
        instances = [job.resource_id for job in platform.made(*(platform.create() for _ in range(INSTANCES)))]
        for number in count():
            if self.stopping.is_set():
                return
            some = [instances[(number * BATCH + place) % INSTANCES] for place in range(BATCH)]
            applier.apply(platform.accept(*self._patches(number, some)))
            with platform.database.transaction() as connection:
                claimed = outbox.claim(connection, self._due())
                outbox.delivered(connection, claimed, status=200)
            self.made += BATCH

    def _patches(self, number: int, instances: Sequence[UUID]) -> Iterator[object]:
        for place, instance in enumerate(instances):
            yield self._platform.submission(
                Operation.PATCH,
                instance,
                {"description": f"{number} " + "x" * 300},
                idempotency_key=f"{hash((number, place)):x}-{number}-{place}",
                fingerprint=b"f" * 32,
            )

    def _due(self) -> list[UUID]:
        return [row[0] for row in self._platform.rows("SELECT id FROM deliveries WHERE announce_at <= now()")]


@contextmanager
def _hasty_autovacuum(server: PostgresServer) -> Iterator[None]:
    with psycopg.connect(server._url("postgres", "postgres"), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET autovacuum_naptime = '1s'")
        connection.execute("SELECT pg_reload_conf()")
        yield


def _sample(platform: Platform) -> dict[str, tuple[int, int, int, int, int]]:
    rows = platform.rows(_SIZES, tables=list(TABLES))
    return {row[0]: (row[1], row[2], row[3], row[4], row[5]) for row in rows}


def _show(seconds: float, feeder: Feeder, sample: dict[str, tuple[int, int, int, int, int]]) -> None:
    parts = [
        f"{name} {table / 2**20:5.1f}+{indexes / 2**20:5.1f} ({dead // 1000:>3}k dead, {vacuums:>2} vacuums)"
        for name, (table, indexes, _, dead, vacuums) in sample.items()
    ]
    click.echo(f"{seconds:5.0f} s {feeder.made:>8} jobs  " + "  ".join(parts))


def _backlog(platform: Platform, jobs: int) -> None:
    """How fast a backlog goes if nobody rests, and how long each transaction takes."""
    many_finished(platform, jobs)
    began = time.monotonic()
    batches = list(Retention(platform.database, finished=timedelta(days=30), audit=timedelta(0)).batches())
    seconds = time.monotonic() - began
    rows = sum(sum(batch.rows.values()) for batch in batches)
    cuts = quantiles((batch.seconds * 1000 for batch in batches), n=100)
    click.echo(
        f"a backlog of {jobs:,} jobs, {rows:,} rows: {jobs / seconds:,.0f} jobs/s; "
        f"{len(batches)} transactions, p50 {cuts[49]:.0f} ms, p99 {cuts[98]:.0f} ms"
    )


@click.command()
@click.option("--backlog", default=50_000, show_default=True, type=click.IntRange(1_000))
@click.option("--seconds", default=240, show_default=True, type=click.IntRange(20))
@click.option("--keep", default=20.0, show_default=True, help="Seconds that a finished job is kept.")
@click.option("--scale-factor", type=float, help="Of autovacuum, in place of what the migration sets.")
def main(backlog: int, seconds: int, keep: float, scale_factor: float | None) -> None:
    """Print how large the tables + their indexes are (MiB); status 1 where they go on growing."""
    rules.CLOCKS_DIFFER_BY = timedelta(0)  # time is compressed
    rules.THOROUGH_EVERY = timedelta(seconds=keep)
    with (
        postgres_server() as server,
        _hasty_autovacuum(server),
        fresh_database(server) as url,
        temporary_data_directory() as directory,
    ):
        platform = Platform(
            Settings(
                _env_file=None,
                database_url=url,
                data_dir=Path(directory.path),
                resources=("tests.kit.tickets",),
            )
        )
        if scale_factor is not None:
            for table in TABLES:
                platform.rows(f"ALTER TABLE {table} SET (autovacuum_vacuum_scale_factor = {scale_factor})")
        _backlog(platform, backlog)
        platform.rows(f"TRUNCATE {', '.join(TABLES)}")
        retention = Retention(platform.database, finished=timedelta(seconds=keep), audit=timedelta(0))
        feeder, pruner = Feeder(platform), Pruner(retention, period=timedelta(seconds=1))
        totals = []
        feeder.start()
        pruner.start()
        began = time.monotonic()
        for sample_number in range(1, SAMPLES + 1):
            feeder.stopping.wait(max(0.0, began + seconds * sample_number / SAMPLES - time.monotonic()))
            sample = _sample(platform)
            totals.append(sum(one[0] + one[1] for one in sample.values()))
            _show(time.monotonic() - began, feeder, sample)
        feeder.stopping.set()
        feeder.join()
        pruner.stop()
        kept = platform.rows("SELECT count(*) FROM jobs")[0][0]
        platform.container.close()
    third = SAMPLES // 3
    growth = max(totals[-third:]) / max(totals[-2 * third : -third])
    click.echo(f"{feeder.made} jobs made, {kept} kept; last third over the one before: {growth:.2f}")
    raise SystemExit(growth > MOST_GROWTH)


if __name__ == "__main__":
    main()
