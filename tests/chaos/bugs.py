"""Bugs to be planted in a real platform, so that the machine can be seen to find them. Nothing else uses it.

``arena.py`` starts each process by way of :func:`plant`, which replaces a piece of the platform first.
"""

import itertools
import os
import random
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text

from api_shim.changes.feed import Subscription
from api_shim.changes.watches import Watch
from api_shim.routes import reads
from consumers.envelope import Arrival
from consumers.intake import IntakeLoop
from consumers.link import Link
from models import ledger_statements as sql
from models import service
from models.database import array
from models.database_clock import DatabaseClock
from models.deliveries.outbox import Delivery
from models.identity.principals import Action
from models.intake import Intake, Receipt
from models.job import JobState
from models.ledger import Ledger, Outcome
from tasks.sweeper import Sweeper
from tasks.webhook import WebhookSender


def acknowledge_before_commit() -> None:
    """Every tenth batch is answered though its commit was lost."""
    accept, calls = Intake.accept, itertools.count(1)

    def answered(self: Intake, batch: Sequence[Any]) -> list[Any]:
        answers = accept(self, batch)
        if next(calls) % 10 == 0:
            ids = array(one.job.id for one in answers if isinstance(one, Receipt) and not one.is_replay)
            with self._database.transaction() as connection:
                for table, column in (
                    ("jobs", "id"),
                    ("job_events", "job_id"),
                    ("idempotency_keys", "job_id"),
                ):
                    statement = f"DELETE FROM {table} WHERE {column} = ANY(CAST(:ids AS uuid[]))"  # noqa: S608
                    connection.execute(text(statement), {"ids": ids})
        return answers

    _replace(Intake, "accept", answered)


def acknowledge_early() -> None:
    """Messages of upstream are acknowledged before their commit."""
    settle = IntakeLoop._settle

    def settled(self: IntakeLoop, link: Link, batch: list[Arrival]) -> None:
        link.acknowledge(batch)
        _replace(link, "acknowledge", lambda _: None)
        try:
            settle(self, link, batch)
        finally:
            del link.__dict__["acknowledge"]

    _replace(IntakeLoop, "_settle", settled)


def forget_keys() -> None:
    """An idempotency key is not looked up: what is sent again becomes another job."""
    _replace(Intake, "_replays", lambda *_: {})
    _replace(Intake, "_losers_of_keys", lambda *_: [])


def reverse_lanes() -> None:
    """The latest job of a lane comes first."""
    sql.OPEN_JOBS = text(sql.OPEN_JOBS.text.replace("ORDER BY position", "ORDER BY position DESC"))


def part_effect_and_outcome() -> None:
    """Every twelfth time the effect is committed without the outcome: the job will be applied again."""
    finish, calls = Ledger.finish, itertools.count(1)

    def finished(self: Ledger, connection: Any, outcomes: Sequence[Outcome]) -> list[UUID]:
        is_lost = next(calls) % 12 == 0 and all(one.state is JobState.SUCCEEDED for one in outcomes)
        return [] if is_lost else finish(self, connection, outcomes)

    _replace(Ledger, "finish", finished)


def disable_sweep() -> None:
    """What was not announced, or is due later, waits for ever."""
    _replace(Sweeper, "sweep", lambda self: 0)


def forget_callbacks() -> None:
    """One outcome in four is not handed to the outbox."""
    _amend_finish("ON e.id = d.callback_endpoint_id", "ON e.id = d.callback_endpoint_id AND random() < 0.75")


def change_final_states() -> None:
    """A job that succeeded can still be cancelled."""
    _amend_finish("j.state IN ('scheduled',", "j.state IN ('succeeded', 'scheduled',")

    def cancel(self: Ledger, connection: Any, job_id: UUID) -> list[UUID]:
        return self.finish(connection, [Outcome(job_id=job_id, state=JobState.CANCELLED, attempt=1)])

    _replace(Ledger, "cancel", cancel)


def renew_ids() -> None:
    """Each attempt to send a callback has an id of its own."""
    _replace(Delivery, "webhook_id", property(lambda self: f"msg_{uuid.uuid4().hex}"))


def change_bodies() -> None:
    """Each attempt sends another body."""
    _amend_send(lambda secrets, body: (secrets, body + b" " * random.randrange(100)))


def sign_wrongly() -> None:
    """One callback in five is signed by another secret."""
    other = "whsec_" + "QUJD" * 8
    _amend_send(lambda secrets, body: ([other] if random.random() < 0.2 else secrets, body))


def show_everything() -> None:
    """Whoever may read may read everything."""
    may = vars(service)["may"]

    def may_see(permissions: Any, principal: Any, action: Action, owner: Any) -> bool:
        return action is Action.READ or may(permissions, principal, action, owner)

    _replace(service, "may", may_see)


def read_stale() -> None:
    """A read may be ten seconds old."""
    load_batcher = reads.load_batcher

    def cached(*arguments: Any) -> Any:
        batcher = load_batcher(*arguments)
        call, kept = batcher.call, dict[Any, tuple[float, Any]]()

        async def from_cache(place: Any) -> Any:
            at, row = kept.get(place, (0.0, None))
            if row is None or time.monotonic() - at > 10:
                at, row = kept[place] = time.monotonic(), await call(place)
            return row

        _replace(batcher, "call", from_cache)
        return batcher

    _replace(reads, "load_batcher", cached)


def leak_descriptors() -> None:
    """Each batch that is accepted leaves some open."""
    accept = Intake.accept

    def leaking(self: Intake, batch: Sequence[Any]) -> list[Any]:
        for _ in range(3):
            os.open(os.devnull, os.O_RDONLY)
        return accept(self, batch)

    _replace(Intake, "accept", leaking)


def run_early() -> None:
    """A scheduled job is taken for due up to an hour before its time."""
    statement = sql.WAKE.text
    assert "announce_at <= now()" in statement, statement
    sql.WAKE = text(statement.replace("announce_at <= now()", "announce_at <= now() + interval '1 hour'"))


def trust_own_clock() -> None:
    """What expires is held against the process' own clock."""
    _replace(DatabaseClock, "now", lambda _: datetime.now(UTC))


def leave_out_transitions() -> None:
    """Who follows many jobs is not told one transition in ten."""
    takes = Subscription.takes
    _replace(Subscription, "takes", lambda self, job: takes(self, job) and job.sequence % 10 != 0)


def repeat_events() -> None:
    """Who follows one job is told again what he has seen."""
    offer = Watch.offer

    def offered(self: Watch, steps: list[Any]) -> None:
        offer(self, steps)
        if self._steps:
            self._steps.insert(0, self._steps[0])

    _replace(Watch, "offer", offered)


def ignore_conditions() -> None:
    """A version that is demanded is not looked at."""
    statement = sql.OPEN_JOBS.text
    assert " if_match," in statement, statement
    sql.OPEN_JOBS = text(statement.replace(" if_match,", " CAST(NULL AS bigint),"))


def redrive_without_end() -> None:
    """A job that is redriven is the job that it was: its end does not count as another generation's."""
    statement = sql.REDRIVE.text
    assert "generation = j.generation + 1" in statement, statement
    sql.REDRIVE = text(statement.replace("generation = j.generation + 1", "generation = j.generation"))


BUGS: dict[str, Callable[[], None]] = {
    plant.__name__.replace("_", "-"): plant
    for plant in (
        acknowledge_before_commit,
        acknowledge_early,
        forget_keys,
        reverse_lanes,
        part_effect_and_outcome,
        disable_sweep,
        forget_callbacks,
        change_final_states,
        renew_ids,
        change_bodies,
        sign_wrongly,
        show_everything,
        read_stale,
        leak_descriptors,
        run_early,
        trust_own_clock,
        leave_out_transitions,
        repeat_events,
        ignore_conditions,
        redrive_without_end,
    )
}


def plant(names: str) -> None:
    """Plant bugs in this process, before it runs.

    Args:
        names: Of :data:`BUGS`, comma-separated.
    """
    for name in names.split(","):
        BUGS[name]()


def _replace(owner: Any, name: str, piece: Any) -> None:
    setattr(owner, name, piece)


def _amend_finish(old: str, new: str) -> None:
    statement = sql.FINISH.text
    assert old in statement, old
    sql.FINISH = text(statement.replace(old, new))


def _amend_send(amend: Callable[[Sequence[str], bytes], tuple[Sequence[str], bytes]]) -> None:
    send = WebhookSender.send

    def sent(self: WebhookSender, url: str, secrets: Any, webhook_id: str, at: Any, body: bytes) -> Any:
        secrets, body = amend(secrets, body)
        return send(self, url, secrets, webhook_id, at, body)

    _replace(WebhookSender, "send", sent)
