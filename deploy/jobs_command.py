"""``waybill jobs``: list jobs, show one, cancel or redrive it; straight from the ledger, API or not."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import click

from models.container import Container
from models.errors import NotFound
from models.job import Job, JobState, to_json
from models.job_query import JobQuery
from models.settings import load_settings


@click.group(invoke_without_command=True)
@click.option(
    "--state", type=click.Choice([str(state) for state in JobState]), help="Only jobs in this state."
)
@click.option("--resource", help="Only jobs on this resource.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@click.pass_context
def jobs(context: click.Context, *, state: str | None, resource: str | None, limit: int) -> None:
    """List jobs, newest first; or show, cancel, redrive one."""
    if context.invoked_subcommand is not None:
        return
    with _container() as container, container.database.snapshot() as connection:
        query = JobQuery(state=state, resource=resource, limit=limit)
        for job in container.ledger.page(connection, query):
            click.echo(_line(job))


@jobs.command()
@click.argument("job_id", type=click.UUID)
def show(job_id: UUID) -> None:
    """Show one job as the API would."""
    with _container() as container, container.database.snapshot() as connection:
        job = container.ledger.find(connection, [job_id]).get(job_id)
    if job is None:
        raise NotFound(f"there is no job {job_id}")
    click.echo(json.dumps(json.loads(to_json(job.document())), indent=2, ensure_ascii=False))


@jobs.command()
@click.argument("job_id", type=click.UUID)
def cancel(job_id: UUID) -> None:
    """Withdraw a job that is not final."""
    with _container() as container, container.database.transaction() as connection:
        container.ledger.cancel(connection, job_id)
    click.echo(f"cancelled {job_id}")


@jobs.command()
@click.argument("job_id", type=click.UUID)
def redrive(job_id: UUID) -> None:
    """Queue a dead job again, at the end of its lane."""
    with _container() as container, container.database.transaction() as connection:
        container.ledger.redrive(connection, job_id)
    click.echo(f"queued {job_id} again")


def _line(job: Job) -> str:
    moment = job.created_at.isoformat(timespec="seconds")
    reason = f"  {job.error.get('message', '')}" if job.error else ""
    return f"{job.id}  {job.state:<10}{job.operation:<8} {job.resource}/{job.resource_id}  {moment}{reason}"


@contextmanager
def _container() -> Iterator[Container]:
    container = Container(load_settings(), role="jobs", pool_size=1)
    try:
        yield container
    finally:
        container.close()
