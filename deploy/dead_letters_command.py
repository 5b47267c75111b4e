"""``waybill dead-letters``: dead jobs listed, shown, grouped, redriven, discarded; and dead messages."""

import getpass
import json
import os
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

import click

from api_shim.web.request_headers import time_header
from deploy.jobs_command import line_of, opened_container, show_document
from models import strict_json
from models.audit import Actor, told_reason
from models.dead_letters.judging import Prospect
from models.dead_letters.letters import DeadLetterQuery, DeadLetters
from models.dead_letters.messages import DeadMessages
from models.dead_letters.redriving import RedriveOrder
from models.errors import Conflict, Invalid, NotFound, Refusal
from models.job import Job, Operation

MOST_AT_ONCE = 1000
_Command = TypeVar("_Command", bound=Callable[..., None])

_limit = click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
_time = "A time as RFC 3339 writes it."


def _reason_given(context: click.Context, parameter: click.Parameter, value: str) -> str:
    try:
        return told_reason(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from error


def _time_given(context: click.Context, parameter: click.Parameter, value: str | None) -> datetime | None:
    try:
        return None if value is None else time_header("it", value)
    except Invalid as error:
        raise click.BadParameter(error.message, context, parameter) from error


_reason = click.option(
    "--reason", required=True, callback=_reason_given, help="Why; kept in the audit trail."
)
_ids = click.argument("job_ids", type=click.UUID, nargs=-1)

_FILTERS = (
    click.option("--resource", help="Only jobs on this resource."),
    click.option("--resource-id", type=click.UUID, help="Only jobs on this instance."),
    click.option("--operation", type=click.Choice([str(one) for one in Operation]), help="Only these."),
    click.option("--error", "group", help="Only of this group: see `list` and `groups`."),
    click.option("--died-after", callback=_time_given, help=f"Only later than this. {_time}"),
    click.option("--died-before", callback=_time_given, help=f"Only earlier than this. {_time}"),
)


def _filtered(command: _Command) -> _Command:
    """With the options that say which dead letters: members of a :class:`DeadLetterQuery`."""
    for option in reversed(_FILTERS):
        command = option(command)
    return command


@click.group("dead-letters", invoke_without_command=True)
@click.pass_context
def dead_letters(context: click.Context) -> None:
    """Look at dead jobs, and decide what becomes of them. Without a command: list them."""
    if context.invoked_subcommand is None:
        context.invoke(listed)


@dead_letters.command("list")
@_filtered
@click.option("--discarded", is_flag=True, help="Those that were put away.")
@_limit
def listed(*, limit: int, **which: Any) -> None:
    """List dead jobs, latest death first, each with its last error and the group of it."""
    with opened_container() as container, container.database.snapshot() as connection:
        for letter in DeadLetters().page(connection, DeadLetterQuery(**which), limit=limit):
            click.echo(f"{line_of(letter.job)}  [{letter.group}]")


@dead_letters.command()
@_filtered
@click.option("--discarded", is_flag=True, help="Those that were put away.")
@_limit
def groups(*, limit: int, **which: Any) -> None:
    """Count dead jobs by resource, operation and error, most first."""
    with opened_container() as container, container.database.snapshot() as connection:
        for one in DeadLetters().groups(connection, DeadLetterQuery(**which), limit=limit):
            reason = f"  ({one.reason})" if one.reason else ""
            click.echo(
                f"{one.group}  {one.count:>7}  {one.operation:<8} {one.resource}  {one.message or ''}{reason}"
            )


@dead_letters.command()
@click.argument("job_id", type=click.UUID)
def show(job_id: UUID) -> None:
    """Show a dead job with its data."""
    with opened_container() as container, container.database.transaction() as connection:
        letter = DeadLetters().pick_up(connection, [job_id]).get(job_id)
    if letter is None or not letter.is_dead:
        raise NotFound(f"there is no dead job {job_id}")
    data = None if letter.payload is None else json.loads(letter.payload)
    show_document(
        {
            **letter.job.document(),
            "ifMatch": letter.if_match,
            "data": data,
            "discardedAt": letter.discarded_at,
        }
    )


@dead_letters.command()
@_ids
@_filtered
@click.option("--patch", help="JSON merge patch of each job's data; - reads it from standard input.")
@click.option("--dry-run", is_flag=True, help="Only say what would come of it.")
@_reason
def redrive(
    *,
    job_ids: tuple[UUID, ...],
    patch: str | None,
    dry_run: bool,
    reason: str,
    **which: Any,
) -> None:
    """Apply dead jobs once more, edited if need be. Exit status 1 where one was refused.

    By their ids, or in their place the oldest 1,000 that the options for it choose.
    """
    if bool(job_ids) == any(one is not None for one in which.values()):
        raise click.UsageError("give either job ids, or which ones: --error, --resource, --died-after, ...")
    order = RedriveOrder(reason=reason, patch=_object(patch), dry_run=dry_run)
    with opened_container() as container:
        ids = list(dict.fromkeys(job_ids))
        if not ids:
            with container.database.snapshot() as connection:
                ids, found = DeadLetters().oldest(connection, DeadLetterQuery(**which), MOST_AT_ONCE)
            click.echo(f"{len(ids)} of {found}")
        answers = container.redriver.redrive(ids, order, _actor()) if ids else []
    refused = 0
    for job_id, answer in zip(ids, answers, strict=True):
        match answer:
            case Job():
                click.echo(f"{job_id}  redriven, generation {answer.generation}")
            case Prospect():
                show_document(answer.document(None))
            case Refusal():
                refused += 1
                details = "; ".join(f"{one.field} {one.reason}" for one in answer.details)
                click.echo(f"{job_id}  refused: {answer.message}{f' ({details})' if details else ''}")
    if refused:
        raise Conflict(f"{refused} of {len(ids)} refused, and not changed")


@dead_letters.command()
@_ids
@_reason
def discard(*, job_ids: tuple[UUID, ...], reason: str) -> None:
    """Put dead jobs away for good: they stay dead and are listed no more."""
    if not job_ids:
        raise click.UsageError("give job ids")
    ids = list(dict.fromkeys(job_ids))
    with opened_container() as container:
        done = container.redriver.discard(ids, reason, _actor())
    for job_id in done:
        click.echo(f"{job_id}  discarded")
    if len(done) != len(ids):
        raise Conflict(f"{len(ids) - len(done)} of {len(ids)} are not dead, or were discarded already")


@dead_letters.command()
@_limit
def messages(limit: int) -> None:
    """List what Celery or the broker gave up on, latest first, with what the ledger held of it."""
    with opened_container() as container, container.database.snapshot() as connection:
        for one in DeadMessages().latest(connection, limit):
            held = ", ".join(f"{count} {state}" for state, count in one.findings.items()) or "nothing"
            moment = one.collected_at.isoformat(timespec="seconds")
            click.echo(f"{one.id}  {moment}  {one.reason}  {one.queue}  {one.task}  {one.size} B  {held}")


def _object(patch: str | None) -> dict[str, Any] | None:
    if patch is None:
        return None
    document = strict_json.parse((sys.stdin.read() if patch == "-" else patch).encode())
    if not isinstance(document, dict):
        raise Invalid("--patch must be a JSON object")
    return document


def _actor() -> Actor:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = str(os.getuid())
    return Actor(None, name)
