"""``waybill up --demo N``: real jobs through HTTP, their outcomes awaited and counted twice."""

import queue
import statistics
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import click
import orjson
import psycopg
import urllib3

from deploy.readiness import http_url
from models.settings import Settings
from models.tables import SCHEMA

_CONNECTIONS = 32
_PATIENCE_SECONDS = 180.0
"""How long one request is tried again while API, broker or database are away."""
_TRY_AGAIN = frozenset({429, 500, 502, 503, 504})


class DemoError(Exception):
    """An answer that no retry mends, or patience at its end."""


_UNEXPECTED = (DemoError, ValueError, KeyError, TypeError)
"""What ends one job's story and not the demo: also an answer that is no job document."""


@dataclass(slots=True)
class Outcome:
    """What became of one job. Times in seconds."""

    job_id: str
    submit_seconds: float
    state: str = "unknown"
    done_seconds: float = 0.0


@dataclass(slots=True)
class Tally:
    """Everything the demo saw; filled by many threads, each appending only."""

    outcomes: list[Outcome] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    retries: list[str] = field(default_factory=list)
    last_finish: float = field(default_factory=time.monotonic)

    def succeeded(self) -> int:
        """Jobs that the API called succeeded."""
        return sum(outcome.state == "succeeded" for outcome in self.outcomes)


def run(
    settings: Settings,
    jobs: int,
    *,
    token: Callable[[], str],
    is_cancelled: Callable[[], bool] = lambda: False,
) -> int:
    """Send jobs, wait for all, print a summary.

    Survives restarts of API, workers, broker and database meanwhile: what got no answer is sent again
    with the same ``Idempotency-Key``.

    Args:
        settings: Where the API and the ledger are.
        jobs: How many, at least 1.
        token: Gives an access token; asked again when one is refused.
        is_cancelled: Polled; when it turns true the demo gives up.

    Returns:
        0 if every job succeeded, in the API's words and in the ledger's; else 1.
    """
    client = _Client(http_url(settings.api_host, settings.api_port), token, is_cancelled)
    tally = Tally()
    started = time.monotonic()
    _send_and_await(client, jobs, tally, is_cancelled)
    seconds = time.monotonic() - started
    in_ledger = _count_in_ledger(settings, [outcome.job_id for outcome in tally.outcomes])
    for line in _summary(jobs, tally, in_ledger, seconds):
        click.echo(line)
    return 0 if tally.succeeded() == in_ledger == jobs else 1


class _Client:
    """Keep-alive HTTP with patience, shared by all threads."""

    def __init__(self, api: str, token: Callable[[], str], is_cancelled: Callable[[], bool]) -> None:
        self._api = f"{api}/api/v1"
        self._mint = token
        self._is_cancelled = is_cancelled
        self._pool = urllib3.PoolManager(maxsize=2 * _CONNECTIONS, block=True, retries=False, timeout=40)
        self._lock = threading.Lock()
        self._token = token()

    def call(
        self, tally: Tally, method: str, path: str, headers: dict[str, str], body: bytes | None = None
    ) -> Any:
        """One request, tried again while it may help; the JSON of its answer."""
        deadline, pause = time.monotonic() + _PATIENCE_SECONDS, 0.05
        while not self._is_cancelled():
            sent_with = self._token
            try:
                answer = self._pool.request(
                    method,
                    self._api + path,
                    body=body,
                    headers={**headers, "Authorization": f"Bearer {sent_with}"},
                )
            except urllib3.exceptions.HTTPError as error:
                reason = type(error).__name__
            else:
                if 200 <= answer.status < 300 or answer.status == 304:
                    return orjson.loads(answer.data) if answer.data else None
                reason = str(answer.status)
                if answer.status == 401:
                    self._renew(sent_with)
                elif answer.status not in _TRY_AGAIN:
                    raise DemoError(
                        f"{method} {path}: {answer.status} {answer.data[:200].decode(errors='replace')}"
                    )
            tally.retries.append(reason)
            if time.monotonic() > deadline:
                raise DemoError(f"{method} {path}: {reason}, for {_PATIENCE_SECONDS:.0f} s")
            time.sleep(pause)
            pause = min(pause * 2, 1.0)
        raise DemoError("interrupted")

    def _renew(self, refused: str) -> None:
        with self._lock:
            if self._token == refused:
                self._token = self._mint()


def _send_and_await(client: _Client, jobs: int, tally: Tally, is_cancelled: Callable[[], bool]) -> None:
    """Submitters and awaiters side by side; an accepted job is handed from one to the other."""
    to_send: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    to_await: queue.SimpleQueue[tuple[Outcome, dict[str, Any]] | None] = queue.SimpleQueue()
    finished: queue.SimpleQueue[bool] = queue.SimpleQueue()
    run_id = uuid.uuid4().hex[:8]

    def submit() -> None:
        while (number := to_send.get()) is not None:
            try:
                to_await.put(_submit(client, tally, run_id, number))
            except _UNEXPECTED as error:
                tally.faults.append(f"{type(error).__name__}: {error}")
                finished.put(False)

    def await_outcomes() -> None:
        while (accepted := to_await.get()) is not None:
            try:
                _await_outcome(client, tally, *accepted)
            except _UNEXPECTED as error:
                tally.faults.append(f"{type(error).__name__}: {error}")
            tally.last_finish = time.monotonic()
            finished.put(True)

    senders = [threading.Thread(target=submit, daemon=True) for _ in range(_CONNECTIONS)]
    awaiters = [threading.Thread(target=await_outcomes, daemon=True) for _ in range(_CONNECTIONS)]
    for number in range(jobs):
        to_send.put(number)
    for thread in senders + awaiters:
        to_send.put(None)
        thread.start()
    for _ in _progress(range(jobs), jobs, tally):
        while not is_cancelled():
            try:
                finished.get(timeout=0.5)
                break
            except queue.Empty:
                continue
    for _ in awaiters:
        to_await.put(None)
    for thread in senders + awaiters:
        thread.join(timeout=1)


def _submit(client: _Client, tally: Tally, run_id: str, number: int) -> tuple[Outcome, dict[str, Any]]:
    name = f"demo {run_id} {number}"
    headers = {"Content-Type": "application/json", "Idempotency-Key": f"demo-{run_id}-{number}"}
    began = time.monotonic()
    job = client.call(tally, "POST", "/entities", headers, orjson.dumps({"name": name}))
    outcome = Outcome(job["id"], time.monotonic() - began)
    tally.outcomes.append(outcome)
    return outcome, job


def _await_outcome(client: _Client, tally: Tally, outcome: Outcome, job: dict[str, Any]) -> None:
    """Long-poll until the job is done.

    Submit→done is the time that the submission took plus the ledger's own createdAt→finishedAt: never
    less than what a client feels, and untouched by how late we ask.
    """
    while not job["done"]:
        headers = {"Prefer": "wait=10", "If-None-Match": f'"{job["sequence"]}"'}
        asked = time.monotonic()
        job = client.call(tally, "GET", f"/jobs/{outcome.job_id}", headers) or job
        if not job["done"]:
            if time.monotonic() - tally.last_finish > _PATIENCE_SECONDS:
                raise DemoError(f"job {outcome.job_id} is {job['state']} and nothing moves")
            time.sleep(max(0.0, 0.05 - (time.monotonic() - asked)))  # an answer at once is not a long poll
    outcome.state = job["state"]
    waited = datetime.fromisoformat(job["finishedAt"]) - datetime.fromisoformat(job["createdAt"])
    outcome.done_seconds = outcome.submit_seconds + max(waited.total_seconds(), 0.0)
    if outcome.state != "succeeded":
        tally.faults.append(f"job {outcome.job_id} {outcome.state}: {job.get('error')}")


def _progress(numbers: Iterable[int], length: int, tally: Tally) -> Iterable[int]:
    """A bar on a terminal, a line every two seconds elsewhere."""
    if sys.stdout.isatty():
        with click.progressbar(numbers, length=length, label="jobs") as bar:
            yield from bar
        return
    said = time.monotonic()
    for number in numbers:
        yield number
        if time.monotonic() - said >= 2:
            said = time.monotonic()
            click.echo(f"demo: {len(tally.outcomes)} of {length} accepted, {number + 1} done")
    click.echo(f"demo: {len(tally.outcomes)} of {length} accepted, {tally.succeeded()} succeeded")


def _count_in_ledger(settings: Settings, job_ids: Sequence[str]) -> int:
    """Jobs that the ledger itself calls succeeded."""
    url = settings.database_url.replace("postgresql+psycopg://", "postgresql://")
    deadline = time.monotonic() + 30
    while True:  # a database that was killed a moment ago may still be recovering
        try:
            return _count(url, job_ids)
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _count(url: str, job_ids: Sequence[str]) -> int:
    count = 0
    with psycopg.connect(url, options=f"-c search_path={SCHEMA},public", connect_timeout=10) as connection:
        for first in range(0, len(job_ids), 10_000):
            row = connection.execute(
                "SELECT count(*) FROM jobs WHERE id = ANY(%s::uuid[]) AND state = 'succeeded'",
                (list(job_ids[first : first + 10_000]),),
            ).fetchone()
            count += row[0] if row else 0
    return count


def _summary(jobs: int, tally: Tally, in_ledger: int, seconds: float) -> Iterable[str]:
    done = [outcome for outcome in tally.outcomes if outcome.done_seconds]
    yield f"demo: {jobs} jobs in {seconds:.2f} s, {jobs / seconds:.0f} jobs/s from first to last"
    yield _percentiles("submit     ", [outcome.submit_seconds for outcome in tally.outcomes])
    yield _percentiles("submit→done", [outcome.done_seconds for outcome in done])
    yield f"succeeded: {tally.succeeded()} says the API, {in_ledger} says the ledger, of {jobs}"
    if tally.retries:
        reasons = ", ".join(
            f"{tally.retries.count(reason)} for {reason}" for reason in sorted(set(tally.retries))
        )
        yield f"requests sent again: {len(tally.retries)} ({reasons})"
    for fault in tally.faults[:5]:
        yield f"fault: {fault}"
    if len(tally.faults) > 5:
        yield f"and {len(tally.faults) - 5} faults more"


def _percentiles(label: str, seconds: Sequence[float]) -> str:
    if len(seconds) < 2:
        return f"{label} {seconds[0] * 1000:.1f} ms" if seconds else f"{label} -"
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return f"{label} p50 {cuts[49] * 1000:.1f} ms, p95 {cuts[94] * 1000:.1f} ms, p99 {cuts[98] * 1000:.1f} ms"
