"""Intake: many submissions become jobs in one transaction, whichever door they came by.

A batch holds requests of different callers, so each gets its own answer: a job, the earlier job of
its idempotency key, or a refusal. One bad row never takes its neighbours down.
"""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, exc, text

from models.database import Database, sqlstate
from models.deliveries.endpoints import CallbackEndpoints
from models.errors import (
    DatabaseUnavailable,
    Invalid,
    NotFound,
    Refusal,
    Transient,
    Unavailable,
    Unprocessable,
)
from models.failpoints import Step
from models.job import Door, Job, Operation, Submission, to_json
from models.ledger import Ledger, accepted_job
from models.refusals import (
    ids_behind_a_creation,
    refusals_by_expiry,
    refusals_by_instance,
    refusals_by_parent,
)
from models.registry import Registry


@dataclass(frozen=True, slots=True)
class Receipt:
    """The answer to an accepted submission.

    Attributes:
        is_replay: The job is an earlier one, accepted under the same idempotency key.
    """

    job: Job
    is_replay: bool = False


@dataclass(frozen=True, slots=True)
class KeyedRequest:
    """A request under an idempotency key, as far as it takes to find the job that it became."""

    principal_id: UUID
    door: Door
    key: str
    fingerprint: bytes


Answer = Receipt | Refusal
Answers = dict[UUID, Answer]
"""By the submission's own job id."""

_Answer = Callable[[Connection, Sequence[Submission]], tuple[Answers, int | None]]
"""Answers a batch inside a transaction; with that one's id, where it made jobs."""

_Key = tuple[UUID, str, str | None]
"""Principal, door and idempotency key."""


class Intake:
    """Accepts batches of submissions.

    Args:
        database: Where the ledger is.
        ledger: Writes the jobs.
        registry: Knows the resources whose instances the submissions are about.
        endpoints: Knows the callback endpoints that they name.
        settle_within: How long after its beginning to look for a batch whose COMMIT was not answered.
    """

    def __init__(
        self,
        database: Database,
        ledger: Ledger,
        registry: Registry,
        endpoints: CallbackEndpoints,
        *,
        settle_within: timedelta = timedelta(seconds=3),
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._registry = registry
        self._endpoints = endpoints
        self._settle_within = settle_within

    def accept(self, batch: Sequence[Submission]) -> list[Answer]:
        """Accept ``batch`` in its order, in one transaction; one answer for each, at the same place.

        A row that the database will not take is found by halving the batch. A connection lost
        during COMMIT is settled by looking the ids up, never by guessing. One that was lost and
        certainly committed nothing is tried once more, on a fresh connection: a server that only
        dropped its connections is noticed by nobody. One that cannot be reached is told at once.

        Raises:
            DatabaseUnavailable: Nothing of the batch was accepted, or it cannot be known.
            Contention: Nothing of the batch was accepted; it may be tried again.
        """
        try:
            try:
                return self._accept(batch, self._answers)
            except exc.DBAPIError as error:
                if not _is_about_a_document(error):
                    raise
                return self._accept(batch, self._answers_by_halves)
        except exc.DBAPIError as error:
            raise DatabaseUnavailable(
                f"the database takes no jobs ({sqlstate(error)}): is it migrated and writable?"
            ) from error

    def recall(self, requests: Sequence[KeyedRequest]) -> list[Receipt | None]:
        """The jobs that ``requests`` have become; None for one that was not accepted, or so long ago.

        Raises:
            DatabaseUnavailable: It cannot be known now.
        """
        keys = [(one.principal_id, str(one.door), one.key) for one in requests]
        try:
            with self._database.snapshot() as connection:
                known = self._jobs_by_key(connection, keys)
        except exc.DBAPIError as error:
            raise DatabaseUnavailable("the keys cannot be read: is the database migrated?") from error
        found = [(one, *known.get(key, (b"", None))) for one, key in zip(requests, keys, strict=True)]
        return [
            Receipt(job, is_replay=True) if job is not None and fingerprint == one.fingerprint else None
            for one, fingerprint, job in found
        ]

    def _accept(self, batch: Sequence[Submission], answer: _Answer) -> list[Answer]:
        """One transaction, and a second one where the first was lost and left nothing."""
        for is_last in (False, True):
            has_begun, committing = False, None
            began = time.monotonic()
            try:
                with self._database.transaction(Step.ACCEPT) as connection:
                    has_begun = True
                    answers, committing = answer(connection, batch)
                return [answers[submission.job_id] for submission in batch]
            except DatabaseUnavailable:
                if committing is not None and (settled := self._settle(batch, committing, began)):
                    return settled
                if is_last or not has_begun:
                    raise
        raise AssertionError("the last attempt answers or raises")

    def _accept_rest(self, batch: Sequence[Submission]) -> list[Answer]:
        """Accept what is left of a batch of which a part is accepted already.

        A fault must not be raised from here: the whole batch would be tried again, and what was
        accepted refused. So those who can still be refused are.
        """
        try:
            return self.accept(batch)
        except Transient:
            refusal = Unavailable("The database is away or busy", retry_after=1)
            return [refusal for _ in batch]

    def _answers_by_halves(
        self, connection: Connection, batch: Sequence[Submission]
    ) -> tuple[Answers, int | None]:
        """The same, in savepoints that part good rows from bad, all in the caller's transaction."""
        try:
            with connection.begin_nested():
                return self._answers(connection, batch)
        except exc.DBAPIError as error:
            if not _is_about_a_document(error):
                raise
            if len(batch) == 1:
                return {batch[0].job_id: Invalid("The database cannot store this document")}, None
        middle = len(batch) // 2
        first, first_id = self._answers_by_halves(connection, batch[:middle])
        second, second_id = self._answers_by_halves(connection, batch[middle:])
        return first | second, first_id or second_id

    def _answers(self, connection: Connection, batch: Sequence[Submission]) -> tuple[Answers, int | None]:
        """Answer everyone: replays first, refusals second, and what is left becomes jobs.

        Returns:
            The answers, and the id of the transaction where it made jobs.
        """
        transaction_id: int | None = None
        leaders: dict[tuple[_Key, bytes], Submission] = {}
        for submission in batch:
            if submission.idempotency_key is not None:
                leaders.setdefault((_key_of(submission), submission.fingerprint), submission)
        fresh = [one for one in batch if leaders.get((_key_of(one), one.fingerprint), one) is one]
        answers = self._replays(connection, fresh)
        fresh = [one for one in fresh if one.job_id not in answers]
        refused = self._refusals(connection, fresh)
        answers |= refused
        # A twin may have been accepted, and even applied, since the keys were looked up: it is the answer.
        answers |= self._replays(connection, [one for one in fresh if one.job_id in refused])
        fresh = [one for one in fresh if one.job_id not in answers]
        lost = self._losers_of_keys(connection, fresh)
        answers |= {one.job_id: _KEY_WITHOUT_JOB for one in lost} | self._replays(connection, lost)
        fresh = [one for one in fresh if one.job_id not in answers]
        if fresh:
            added = self._ledger.accept(connection, fresh)
            answers |= {one.job_id: Receipt(accepted_job(one, added[one.job_id])) for one in fresh}
            transaction_id = added[fresh[0].job_id].transaction_id
        for one in batch:
            if one.job_id not in answers:
                answers[one.job_id] = _followed(answers[leaders[_key_of(one), one.fingerprint].job_id])
        return answers, transaction_id

    # ---- idempotency keys --------------------------------------------------------------

    def _replays(self, connection: Connection, batch: Iterable[Submission]) -> Answers:
        """Answers to those whose key is known: the earlier job, or 422 where the request differs.

        A key goes with its job when that is past its retention: one whose job is gone is being forgotten.
        """
        keyed = [one for one in batch if one.idempotency_key is not None]
        known = self._jobs_by_key(connection, [_key_of(one) for one in keyed])
        answers: Answers = {}
        for one in keyed:
            fingerprint, job = known.get(_key_of(one), (b"", None))
            if job is not None:
                is_same = fingerprint == one.fingerprint
                answers[one.job_id] = Receipt(job, is_replay=True) if is_same else _OTHER_REQUEST
        return answers

    def _jobs_by_key(self, connection: Connection, keys: Sequence[_Key]) -> dict[_Key, tuple[bytes, Job]]:
        """Of each key whose job is there: the fingerprint of its request, and the job."""
        if not keys:
            return {}
        rows = connection.execute(
            _KNOWN_KEYS, {"keys": to_json([_key_row(one) for one in keys]).decode()}
        ).all()
        jobs = self._ledger.find(connection, [row[4] for row in rows]) if rows else {}
        return {(row[0], row[1], row[2]): (bytes(row[3]), jobs[row[4]]) for row in rows if row[4] in jobs}

    def _losers_of_keys(self, connection: Connection, batch: Iterable[Submission]) -> list[Submission]:
        """Claim the keys of ``batch``, in key order so that racing batches never deadlock; who lost.

        Of two requests under one key the earlier one wins.
        """
        keyed = sorted((one for one in batch if one.idempotency_key is not None), key=_key_of)
        if not keyed:
            return []
        won = {row[0] for row in connection.execute(_CLAIM_KEYS, {"keys": _key_rows(keyed)}).all()}
        return [one for one in keyed if one.job_id not in won]

    # ---- what can be refused at once ---------------------------------------------------

    def _refusals(self, connection: Connection, batch: Sequence[Submission]) -> Answers:
        """Refusals that no later state can lift: foreign or unknown instances, versions passed already."""
        answers: Answers = {**refusals_by_expiry(connection, batch)}
        named = [one for one in batch if one.callback_endpoint_id is not None]
        if named:
            owners = self._endpoints.owners(connection, [one.callback_endpoint_id for one in named])
            for one in named:
                if owners.get(one.callback_endpoint_id) != one.principal.id:
                    answers[one.job_id] = Invalid("Waybill-Callback names no enabled endpoint of yours")
        aimed = [
            one
            for one in batch
            if (one.operation is not Operation.CREATE or one.parent_id is not None)
            and one.job_id not in answers
        ]
        if not aimed:
            return answers
        # The lanes first, the instances second: a creation that commits in between is then seen
        # by one of the two. The other way round it would be seen by neither.
        busy = self._ledger.lanes_in_use(connection, [one.lane for one in aimed])
        expected = ids_behind_a_creation(batch)
        to_come = {
            one.job_id
            for one in aimed
            if one.lane in busy or one.job_id in expected or one.run_at is not None
        }
        for name in {one.resource for one in aimed}:
            resource = self._registry[name]
            here = [one for one in aimed if one.resource == name]
            if resource.parent is not None:
                refused = refusals_by_parent(connection, resource, resource.parent, here, to_come)
                answers |= refused
                here = [one for one in here if one.job_id not in refused]
            here = [one for one in here if one.operation is not Operation.CREATE]
            answers |= refusals_by_instance(connection, resource, here, to_come)
        absent = [one for one in aimed if isinstance(answers.get(one.job_id), NotFound)]
        for job_id in self._taken_in_if_absent(connection, absent, busy):
            del answers[job_id]
        return answers

    def _taken_in_if_absent(
        self, connection: Connection, absent: Iterable[Submission], busy: Collection[int]
    ) -> list[UUID]:
        """Those that would be taken in if what they name were not there: told 404, one would know that it is.

        They are to be done later, or behind a job of their own caller's.
        """
        return [
            one.job_id
            for one in absent
            if one.run_at is not None
            or (
                one.lane in busy
                and self._ledger.lanes_in_use(connection, [one.lane], principal_id=one.principal.id)
            )
        ]

    # ---- a lost connection -------------------------------------------------------------

    def _settle(self, batch: Sequence[Submission], transaction_id: int, began: float) -> list[Answer] | None:
        """After a COMMIT without an answer: find out. The batch was one transaction, so all or none.

        Its server process may outlive the connection and still commit, so not to find the jobs means
        something only once that transaction has ended.

        Returns:
            The answers; None where it is certain that nothing was committed.

        Raises:
            DatabaseUnavailable: The database stayed away, so it cannot be known.
        """
        deadline = began + self._settle_within.total_seconds()
        while True:
            try:
                with self._database.snapshot() as connection:
                    is_under_way = self._ledger.is_under_way(connection, transaction_id)
                    jobs = self._ledger.find(connection, [one.job_id for one in batch])
                if not is_under_way:
                    break
            except DatabaseUnavailable:
                if time.monotonic() > deadline:
                    raise
            if time.monotonic() > deadline:
                raise DatabaseUnavailable("the database does not finish a commit")
            time.sleep(0.2)
        if not jobs:
            return None
        rest = [one for one in batch if one.job_id not in jobs]
        answers: Answers = {job_id: Receipt(job) for job_id, job in jobs.items()}
        answers |= (
            dict(zip([one.job_id for one in rest], self._accept_rest(rest), strict=True)) if rest else {}
        )
        return [answers[one.job_id] for one in batch]


def _is_about_a_document(error: exc.DBAPIError) -> bool:
    """Whether a row of the batch is at fault (bad data, a limit passed), not the database as it stands."""
    is_about_data = isinstance(error, exc.DataError | exc.IntegrityError)
    return is_about_data or (sqlstate(error) or "").startswith(("21", "22", "23", "54"))


def _followed(answer: Answer) -> Answer:
    """The answer to a request that came twice in a batch, from that to the first."""
    return Receipt(answer.job, is_replay=True) if isinstance(answer, Receipt) else answer


_OTHER_REQUEST = Unprocessable("This Idempotency-Key was used with another request")
_KEY_WITHOUT_JOB = Unprocessable("The job of this Idempotency-Key is gone: use another key")
"""Where somebody deleted a job by hand and left its key. Retention never does."""


def _key_of(one: Submission) -> _Key:
    return (one.principal.id, str(one.door), one.idempotency_key)


def _key_rows(batch: Iterable[Submission]) -> str:
    rows = [
        {**_key_row(_key_of(one)), "fingerprint": "\\x" + one.fingerprint.hex(), "job_id": one.job_id}
        for one in batch
    ]
    return to_json(rows).decode()


def _key_row(key: _Key) -> dict[str, Any]:
    return dict(zip(("principal_id", "door", "key"), key, strict=True))


_KNOWN_KEYS = text("""
SELECT k.principal_id, k.door, k.key, k.fingerprint, k.job_id
FROM json_populate_recordset(NULL::idempotency_keys, CAST(:keys AS json)) AS r
JOIN idempotency_keys AS k USING (principal_id, door, key)
""")

_CLAIM_KEYS = text("""
INSERT INTO idempotency_keys (principal_id, door, key, fingerprint, job_id)
SELECT principal_id, door, key, fingerprint, job_id
FROM json_populate_recordset(NULL::idempotency_keys, CAST(:keys AS json))
ON CONFLICT DO NOTHING RETURNING job_id
""")
