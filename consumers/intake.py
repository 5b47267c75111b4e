"""The intake loop: takes upstream messages in by the batch, settles each, and only then acknowledges.

::

    take ─▶ judge ─▶ commit ─▶ dead letters ─▶ replies ─▶ announce ─▶ acknowledge
             │          │      (confirmed)    (best effort)
             └──────────┴─ database away, or full: hold the batch, wait, judge it again

Nothing is given back while the database is away, or full: the batch stays in hand, its connection
alive, so the order of the queue holds and no delivery is counted. Whatever ends the process or the
connection gives the messages back to their place, and what had been committed is then known by its
message id.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Protocol, TypeVar
from uuid import UUID

from consumers import replies
from consumers.desk import Desk
from consumers.envelope import Arrival
from consumers.link import Link
from consumers.publisher import Outgoing, Publisher
from consumers.replies import Rejection
from models import failpoints
from models.capacity import Capacity
from models.errors import ConfigurationError, DatabaseUnavailable, Refusal, Transient, Unavailable
from models.failpoints import Step
from models.intake import Answer, Intake, KeyedRequest, Receipt
from models.job import JobState, Priority, Submission

BATCH = 200
"""Messages that share one transaction, at most."""
PREFETCH = 2 * BATCH
"""The next batch arrives while this one is at work."""

_PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0, 3.0)
_IDLE_SECONDS = 0.5
_HEARTBEAT_CHECK_SECONDS = 1.0
_LAST_WORK_SECONDS = 4.0
"""How long a batch at hand may go on once the process is to stop."""

_Result = TypeVar("_Result")
_Verdict = Receipt | Rejection


class JobAnnouncer(Protocol):
    """Whoever tells the workers; see :class:`tasks.announcer.Announcer`."""

    def jobs(self, accepted: Mapping[Priority, Sequence[UUID]]) -> None:
        """Announce jobs by priority. Returns at once and never raises."""


class Interrupted(Exception):
    """The process is to stop and the batch at hand is not settled: it goes back to the queue."""


class IntakeLoop:
    """Consumes ``waybill.intake`` until told to stop; outlives broker, database and bad messages.

    Args:
        desk: Makes submissions of messages.
        intake: Makes jobs of submissions.
        capacity: Tells whether there is room for more jobs.
        announcer: Tells the workers.
        open_link: Opens a link to the broker; it is consumed from at once.
        publisher: Sends dead letters and replies.
        stopping: Set when the process is to stop.
        log: Where outages and refused messages are told.
    """

    def __init__(
        self,
        *,
        desk: Desk,
        intake: Intake,
        capacity: Capacity,
        announcer: JobAnnouncer,
        open_link: Callable[[], Link],
        publisher: Publisher,
        stopping: threading.Event,
        log: logging.Logger,
    ) -> None:
        self._desk = desk
        self._intake = intake
        self._capacity = capacity
        self._capacity_due = 0.0
        self._announcer = announcer
        self._open_link = open_link
        self._publisher = publisher
        self._stopping = stopping
        self._log = log

    def run(self) -> None:
        """Consume; returns once stopped, with every batch either settled or back in the queue."""
        failures, complaint = 0, ""
        while not self._stopping.is_set():
            try:
                link = self._open_link()
            except Exception as error:
                complaint = self._complain(error, complaint)
                self._stopping.wait(_pause(failures))
                failures += 1
                continue
            self._log.info("consuming upstream messages")
            complaint, since = "", time.monotonic()
            try:
                self._consume(link)
            except Interrupted:
                self._log.info("stopped with unsettled messages: they are back in the queue")
            except Exception as error:
                complaint = self._complain(error, complaint)
                failures = 0 if time.monotonic() - since > _PAUSES[-1] else failures + 1
                self._stopping.wait(_pause(failures))
            finally:
                link.close()
        self._publisher.close()

    def _complain(self, error: Exception, previous: str) -> str:
        """Log what keeps us from the broker once, not at every attempt."""
        if isinstance(error, ConfigurationError):
            if str(error) != previous:
                self._log.error("broker not usable as it is, trying again", extra={"reason": str(error)})
            return str(error)
        reason = f"{type(error).__name__}: {error}"
        if not previous:
            self._log.warning("broker lost, trying again until it is back", extra={"reason": reason})
        return previous or reason

    def _consume(self, link: Link) -> None:
        while not self._stopping.is_set():
            batch = link.take(BATCH, _IDLE_SECONDS)
            self._publisher.keep_alive()
            if batch:
                self._settle(link, batch)

    # ---- one batch ---------------------------------------------------------------------

    def _settle(self, link: Link, batch: list[Arrival]) -> None:
        """Bring every message of ``batch`` to its end, then acknowledge them all."""
        failpoints.before(Step.TAKE_IN)
        verdicts = self._until_done(link, "database", lambda: self._judge(batch))
        failpoints.after(Step.TAKE_IN)
        rejected = [(a, v) for a, v in zip(batch, verdicts, strict=True) if isinstance(v, Rejection)]
        if rejected:
            letters = [replies.dead_letter(arrival, rejection) for arrival, rejection in rejected]
            failpoints.before(Step.DEAD_LETTER)
            self._until_done(link, "dead-letter queue", lambda: self._publisher.confirmed(letters))
            failpoints.after(Step.DEAD_LETTER)
        for _, rejection in rejected:
            self._log.info(
                "message refused",
                extra={"reason": rejection.reason, "requestId": rejection.problem["requestId"]},
            )
        self._reply(batch, verdicts)
        self._announce(verdicts)
        failpoints.before(Step.ACKNOWLEDGE_UPSTREAM)
        link.acknowledge(batch)
        failpoints.after(Step.ACKNOWLEDGE_UPSTREAM)

    def _find_room(self, jobs: int) -> None:
        """Come back where the ledger has room for ``jobs`` more; looked at about once a second.

        Raises:
            Transient: It is full.
        """
        if time.monotonic() >= self._capacity_due:
            self._capacity.read()
            self._capacity_due = time.monotonic() + self._capacity.rest_seconds
        try:
            self._capacity.admit(Priority.NORMAL, jobs)
        except Unavailable as refusal:
            raise Transient(refusal.message) from refusal

    def _judge(self, batch: Sequence[Arrival]) -> list[_Verdict]:
        """A verdict for each message, in order. What can be taken is committed in one transaction.

        Raises:
            Transient: It cannot be said now. Some may have been accepted: judging again will tell.
        """
        self._find_room(len(batch))
        submissions: list[tuple[int, Submission]] = []
        verdicts: dict[int, _Verdict] = {}
        for place, arrival in enumerate(batch):
            try:
                submissions.append((place, self._desk.submission(arrival)))
            except Refusal as refusal:
                verdicts[place] = replies.refused(arrival, refusal)
            except Transient:
                raise
            except Exception:
                self._log.exception("message cannot be handled")
                verdicts[place] = replies.failed(arrival)
        answers = self._accept([submission for _, submission in submissions])
        for (place, _), answer in zip(submissions, answers, strict=True):
            verdicts[place] = _verdict(batch[place], answer)
        verdicts |= self._taken_before(batch, verdicts)
        return [verdicts[place] for place in range(len(batch))]

    def _taken_before(self, batch: Sequence[Arrival], verdicts: Mapping[int, _Verdict]) -> dict[int, Receipt]:
        """Of what would be refused now, that which is a job already: it was not too late then, nor forbidden.

        Raises:
            DatabaseUnavailable: It cannot be said now.
        """
        requests: dict[int, KeyedRequest] = {}
        for place, verdict in verdicts.items():
            if isinstance(verdict, Rejection) and batch[place].may_have_been_taken:
                request = self._request(batch[place])
                if request is not None:
                    requests[place] = request
        receipts = self._intake.recall(list(requests.values())) if requests else []
        found = zip(requests, receipts, strict=True)
        return {place: receipt for place, receipt in found if receipt is not None}

    def _request(self, arrival: Arrival) -> KeyedRequest | None:
        try:
            return self._desk.request(arrival)
        except Transient:
            raise
        except Exception:
            return None  # nor could it be told before

    def _accept(self, batch: Sequence[Submission]) -> list[Answer | None]:
        """The ledger's answers; None for one that our own code cannot cope with, found on its own."""
        if not batch:
            return []
        try:
            answers: list[Answer | None] = list(self._intake.accept(batch))
            if any(isinstance(answer, Unavailable) for answer in answers):
                # Part of it is accepted: it comes again, and their message ids make those the same jobs.
                raise DatabaseUnavailable("the batch could not be accepted whole")
            return answers
        except Transient:
            raise
        except Exception:
            if len(batch) > 1:
                return [answer for one in batch for answer in self._accept([one])]
            self._log.exception("submission cannot be handled", extra={"requestId": batch[0].request_id})
            return [None]

    def _reply(self, batch: Sequence[Arrival], verdicts: Sequence[_Verdict]) -> None:
        outgoing: list[Outgoing] = []
        for arrival, verdict in zip(batch, verdicts, strict=True):
            if isinstance(verdict, Receipt):
                reply = replies.accepted_reply(arrival, verdict)
            else:
                reply = replies.rejected_reply(arrival, verdict)
            if reply is not None:
                outgoing.append(reply)
        if not outgoing:
            return
        failpoints.before(Step.ANSWER_UPSTREAM)
        if not self._publisher.best_effort(outgoing):
            self._log.warning("replies not sent", extra={"replies": len(outgoing)})
        failpoints.after(Step.ANSWER_UPSTREAM)

    def _announce(self, verdicts: Sequence[_Verdict]) -> None:
        ready: dict[Priority, list[UUID]] = {}
        for verdict in verdicts:
            if not isinstance(verdict, Receipt) or verdict.is_replay:
                continue
            if verdict.job.state is JobState.QUEUED:
                ready.setdefault(verdict.job.priority, []).append(verdict.job.id)
        self._announcer.jobs(ready)

    # ---- waiting without losing the link -----------------------------------------------

    def _until_done(self, link: Link, dependency: str, work: Callable[[], _Result]) -> _Result:
        """Do ``work``, again and again while it fails for a passing reason, holding what is in hand.

        Raises:
            Interrupted: The process is to stop.
            Exception: The link is lost.
        """
        failures = 0
        while True:
            try:
                result = self._beside_heartbeats(link, work)
            except Transient as error:
                if failures == 0:
                    self._log.warning(
                        "holding messages until it is back",
                        extra={"dependency": dependency, "reason": str(error)},
                    )
                self._rest(link, _pause(failures))
                failures += 1
            else:
                if failures:
                    self._log.info("it is back", extra={"dependency": dependency})
                return result

    def _beside_heartbeats(self, link: Link, work: Callable[[], _Result]) -> _Result:
        """Do ``work`` in a thread while this one exchanges heartbeats."""
        done: Future[_Result] = Future()
        threading.Thread(target=_fulfil, args=(done, work), name="intake-work", daemon=True).start()
        deadline: float | None = None
        while True:
            try:
                return done.result(timeout=_HEARTBEAT_CHECK_SECONDS)
            except TimeoutError:
                if done.done():
                    raise
            if self._stopping.is_set():
                deadline = deadline or time.monotonic() + _LAST_WORK_SECONDS
                if time.monotonic() > deadline:
                    raise Interrupted
            self._keep_alive(link, is_at_work=True)

    def _rest(self, link: Link, seconds: float) -> None:
        """Wait for ``seconds``, exchanging heartbeats.

        Raises:
            Interrupted: The process is to stop.
            Exception: The link is lost.
        """
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._stopping.wait(min(left, _HEARTBEAT_CHECK_SECONDS)):
                raise Interrupted
            self._keep_alive(link, is_at_work=False)

    def _keep_alive(self, link: Link, *, is_at_work: bool) -> None:
        """Exchange heartbeats. A link that is lost while a transaction runs is not the time to say so."""
        try:
            link.keep_alive()
        except Exception:
            if not is_at_work:
                raise


def _verdict(arrival: Arrival, answer: Answer | None) -> _Verdict:
    if isinstance(answer, Receipt):
        return answer
    return replies.failed(arrival) if answer is None else replies.refused(arrival, answer)


def _fulfil(done: "Future[_Result]", work: Callable[[], _Result]) -> None:
    try:
        done.set_result(work())
    except BaseException as error:
        done.set_exception(error)


def _pause(failures: int) -> float:
    return _PAUSES[min(failures, len(_PAUSES) - 1)]
