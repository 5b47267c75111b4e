"""``waybill dead-letters``: the jobs that rest, with their reasons. ``waybill jobs redrive`` revives one."""

import click

from deploy.jobs_command import jobs
from models.job import JobState


@click.command("dead-letters")
@click.option("--resource", help="Only jobs on this resource.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
@click.pass_context
def dead_letters(context: click.Context, *, resource: str | None, limit: int) -> None:
    """List dead jobs, newest first, each with its last error."""
    context.invoke(jobs, state=str(JobState.DEAD), resource=resource, limit=limit)
