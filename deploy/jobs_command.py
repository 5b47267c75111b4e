"""``waybill jobs``: list jobs, show one, cancel it, prune old ones; straight from the ledger, API or not."""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import click

from models.container import Container
from models.failpoints import Step
from models.job import Job, JobState, to_json
from models.job_query import JobQuery
from models.retention import absence
from models.settings import load_settings


@click.group(invoke_without_command=True)
@click.option(
    "--state", type=click.Choice([str(state) for state in JobState]), help="Only jobs in this state."
)
@click.option("--resource", help="Only jobs on this resource.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@click.pass_context
def jobs(context: click.Context, *, state: str | None, resource: str | None, limit: int) -> None:
    """List jobs, newest first; or show or cancel one, or prune those past their retention."""
    if context.invoked_subcommand is not None:
        return
    with opened_container() as container, container.database.snapshot() as connection:
        query = JobQuery(state=state, resource=resource, limit=limit)
        for job in container.ledger.page(connection, query):
            click.echo(line_of(job))


@jobs.command()
@click.argument("job_id", type=click.UUID)
def show(job_id: UUID) -> None:
    """Show one job as the API would."""
    with opened_container() as container, container.database.snapshot() as connection:
        job = container.ledger.find(connection, [job_id]).get(job_id)
        retention = timedelta(days=container.settings.retention_days)
    if job is None:
        raise absence(job_id, retention, datetime.now(UTC))
    show_document(job.document())


@jobs.command()
@click.argument("job_id", type=click.UUID)
def cancel(job_id: UUID) -> None:
    """Withdraw a job that is not final."""
    with opened_container() as container, container.database.transaction(Step.CANCEL) as connection:
        container.ledger.cancel(connection, job_id)
    click.echo(f"cancelled {job_id}")


@jobs.command()
@click.option("--dry-run", is_flag=True, help="Only count what is past its retention.")
def prune(*, dry_run: bool) -> None:
    """Delete what is past its retention now, as the workers do by and by.

    Small transactions, with as long a pause after each; may be ended at any time.
    """
    rows: Counter[str] = Counter()
    with opened_container() as container:
        if dry_run:
            with container.database.transaction() as connection:
                rows.update(container.retention.overdue(connection))
        else:
            for batch in container.retention.batches(waits=True):
                rows.update(batch.rows)
                time.sleep(batch.seconds)
    for table, count in sorted(rows.items()):
        click.echo(f"{table:<18} {count:>12,}")


def show_document(document: Mapping[str, Any]) -> None:
    """Print a document as the API would tell it, for people."""
    click.echo(json.dumps(json.loads(to_json(document)), indent=2, ensure_ascii=False))


def line_of(job: Job) -> str:
    """A job in one line."""
    moment = job.created_at.isoformat(timespec="seconds")
    reason = f"  {job.error.get('message', '')}" if job.error else ""
    return f"{job.id}  {job.state:<10}{job.operation:<8} {job.resource}/{job.resource_id}  {moment}{reason}"


@contextmanager
def opened_container() -> Iterator[Container]:
    """What a command needs of the platform, closed afterwards."""
    container = Container(load_settings(), role="jobs", pool_size=1)
    try:
        yield container
    finally:
        container.close()
