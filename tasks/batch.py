"""A batch at work: jobs of many lanes, folded and written as sets in one transaction. No locks, no commit."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, exc

from models.cache.views import Changes
from models.errors import Conflict, Contention, Forbidden, NotFound, PreconditionFailed, Refusal
from models.identity.principals import Action, Principal, may
from models.job import JobState, Operation
from models.ledger import OpenJob, Outcome
from models.registry import Registry, Resource
from models.repository import as_refusal
from models.service import Effect, Row, Work
from tasks import own_code

_Key = tuple[str, UUID]
"""Resource name and instance id."""


@dataclass(slots=True)
class _Run:
    """Successive jobs on one instance, written as one row.

    Attributes:
        before: The instance as the database has it.
        after: The instance as the last of the jobs leaves it.
        effect: What has to be written.
        document: How callers see ``after``, where it is to be written.
        creator: The job whose insert may still meet a unique rule.
    """

    key: _Key
    jobs: list[OpenJob]
    before: Row | None
    after: Row | None = None
    effect: Effect = Effect.NONE
    document: bytes = b""
    creator: OpenJob | None = None
    outcomes: list[Outcome] = field(default_factory=list)


class Batch:
    """Runs jobs in rounds: each round takes the next run of every lane and writes all runs as sets.

    Args:
        connection: The transaction; the jobs' lanes are locked in it.
        registry: Services and repositories by resource.
        principals: Who is allowed to act at this moment, by id.
        now: The database's time, read after the locks.

    Attributes:
        changes: What was written.
        unprepared: Jobs that were refused for what they found, or did not find, in their lane.
    """

    def __init__(
        self, connection: Connection, registry: Registry, principals: Mapping[UUID, Principal], now: datetime
    ) -> None:
        self._connection = connection
        self._registry = registry
        self._principals = principals
        self._now = now
        self._instances: dict[_Key, Row | None] = {}
        self._buried: dict[_Key, int] = {}
        self.changes = Changes()
        self.unprepared: dict[UUID, OpenJob] = {}

    def run(self, jobs: Sequence[OpenJob]) -> list[Outcome]:
        """Apply ``jobs``, which are in the order of their lanes; the outcome of every one."""
        outcomes = [_expired(job) for job in jobs if job.has_expired]
        lanes: dict[int, deque[OpenJob]] = {}
        for job in jobs:
            if not job.has_expired:
                lanes.setdefault(job.lane, deque()).append(job)
        self._load(job for lane in lanes.values() for job in lane)
        while lanes:
            with own_code.bounded():
                runs = [self._fold(self._next_run(lane)) for lane in lanes.values()]
            self._write(runs)
            for lane, run in zip(lanes.values(), runs, strict=True):
                outcomes += run.outcomes
                lane.extendleft(reversed(run.jobs[len(run.outcomes) :]))
            lanes = {key: lane for key, lane in lanes.items() if lane}
        return outcomes

    # ---- reading -----------------------------------------------------------------------

    def _load(self, jobs: Iterable[OpenJob]) -> None:
        """Load every instance that the jobs are about, and the last versions of deleted ones."""
        wanted: dict[str, dict[UUID, bool]] = {}
        for job in jobs:
            if job.resource not in self._registry:  # no business outcome: another worker may know it
                raise LookupError(f"this worker does not know the resource {job.resource}")
            ids = wanted.setdefault(job.resource, {})
            ids[job.resource_id] = ids.get(job.resource_id, False) or job.operation is Operation.CREATE
            parent = self._registry[job.resource].parent
            if parent is not None and job.parent_id is not None:
                wanted.setdefault(parent.type.name, {}).setdefault(job.parent_id, False)
        for name, ids in wanted.items():
            repository = self._registry[name].repository
            found = repository.load_many(self._connection, list(ids))
            self._instances |= {(name, one): found.get(one) for one in ids}
            created = [one for one, is_created in ids.items() if is_created and one not in found]
            if created:
                buried = repository.buried_versions(self._connection, created)
                self._buried |= {(name, one): version for one, version in buried.items()}

    # ---- folding -----------------------------------------------------------------------

    def _next_run(self, lane: deque[OpenJob]) -> list[OpenJob]:
        """The next jobs of a lane that may be written as one row; a create begins, a delete is alone."""
        first = lane.popleft()
        run = [first]
        if first.operation is Operation.DELETE or not self._registry[first.resource].type.folds:
            return run
        while lane and _key_of(lane[0]) == _key_of(first):
            if lane[0].operation in (Operation.CREATE, Operation.DELETE):
                break
            run.append(lane.popleft())
        return run

    def _fold(self, jobs: list[OpenJob]) -> _Run:
        """What ``jobs`` make of their instance, one after the other."""
        key = _key_of(jobs[0])
        service = self._registry[key[0]].service
        run = _Run(key, jobs, before=self._instances[key], after=self._instances[key])
        for job in jobs:
            try:
                change = service.apply(self._work(job), run.after)
            except Refusal as refusal:
                refusal = self._to_the_demoted(job, run.after) or refusal
                run.outcomes.append(_refused(job, refusal))
                if _is_about_the_lane(job, refusal):
                    self.unprepared[job.id] = job
                continue
            run.after, run.document = change.row, change.result or b""
            if change.effect is Effect.INSERT:
                run.creator = job
            if run.effect is not Effect.INSERT and change.effect is not Effect.NONE:
                run.effect = change.effect
            run.outcomes.append(
                Outcome(
                    job_id=job.id,
                    state=JobState.SUCCEEDED,
                    attempt=job.attempt + 1,
                    version=change.version,
                    result=change.result,
                )
            )
        return run

    def _to_the_demoted(self, job: OpenJob, row: Row | None) -> Refusal | None:
        """403 instead of 404 where the instance only vanished from sight, with the role that showed it."""
        principal = self._principals.get(job.principal_id)
        if principal is None or job.role in (None, principal.role):
            return None
        resource = self._registry[job.resource]
        if resource.parent is not None and job.parent_id is not None:
            row = self._instances[(resource.parent.type.name, job.parent_id)]
        if row is None or may(resource.type.permissions, principal, Action.READ, row["owner_id"]):
            return None
        return Forbidden(f"The role {principal.role} may not {job.operation.action} {job.resource} of others")

    def _work(self, job: OpenJob) -> Work:
        principal = self._principals.get(job.principal_id)
        if principal is None:
            raise Forbidden("The user who asked for this is disabled or gone")
        parent = self._registry[job.resource].parent
        owner_id = self._owner_of_parent(parent, job, principal) if parent is not None else None
        return Work(
            operation=job.operation,
            resource_id=job.resource_id,
            payload=job.payload,
            if_match=job.if_match,
            principal=principal,
            now=self._now,
            buried_version=self._buried.get(_key_of(job), 0),
            parent_id=job.parent_id,
            owner_id=owner_id,
        )

    def _owner_of_parent(self, parent: Resource, job: OpenJob, principal: Principal) -> UUID | None:
        """Whose the parent is, and so its parts.

        Raises:
            NotFound: It is not there (any more), or not for this principal to see.
        """
        assert job.parent_id is not None  # noqa: S101 - intake took none without
        row = self._instances[(parent.type.name, job.parent_id)]
        if row is None:
            raise parent.service.absent()
        parent.service.authorize(principal, Action.READ, row)
        owner_id: UUID | None = row["owner_id"]
        return owner_id

    # ---- writing -----------------------------------------------------------------------

    def _write(self, runs: Sequence[_Run]) -> None:
        """Write what the runs changed: one statement a resource and effect."""
        for name in dict.fromkeys(run.key[0] for run in runs if run.effect is not Effect.NONE):
            mine = [run for run in runs if run.key[0] == name]
            for effect, write in (
                (Effect.INSERT, self._insert),
                (Effect.UPDATE, self._update),
                (Effect.DELETE, self._delete),
            ):
                changed = [run for run in mine if run.effect is effect]
                if changed:
                    self._attempt(name, changed, write)

    def _attempt(self, name: str, runs: Sequence[_Run], write: Callable[[str, Sequence[_Run]], None]) -> None:
        """Write a set. Where a constraint may refuse a row of it, that one is refused and the others go in.

        Without this a duplicate value would roll back everybody's batch until it stands alone.
        """
        if self._registry[name].type.folds:
            write(name, runs)
            return
        try:
            with self._connection.begin_nested():
                write(name, runs)
        except exc.DBAPIError as error:
            refusal = as_refusal(error)
            if not isinstance(refusal, Refusal):
                raise
            if len(runs) > 1:
                middle = len(runs) // 2
                self._attempt(name, runs[:middle], write)
                self._attempt(name, runs[middle:], write)
                return
            [run] = runs  # of one job: this resource does not fold
            run.outcomes[:] = [_refused(run.jobs[0], refusal)]

    def _insert(self, name: str, runs: Sequence[_Run]) -> None:
        repository = self._registry[name].repository
        first: dict[_Key, _Run] = {}  # the same id below two parents comes in two lanes
        for run in runs:
            first.setdefault(run.key, run)
        inserted = repository.insert_many(self._connection, [_row(run) for run in first.values()])
        for run in runs:
            if run is first[run.key] and run.key[1] in inserted:
                self._accept(run)
            else:
                self._refuse_creation(run)

    @staticmethod
    def _refuse_creation(run: _Run) -> None:
        """A unique rule kept the row out: its creator fails, the jobs behind it are tried again."""
        assert run.creator is not None  # noqa: S101 - an insert has one
        place = run.jobs.index(run.creator)
        refusal = Conflict("Another instance has the same value of a unique member")
        run.outcomes[place:] = [_refused(run.creator, refusal)]

    def _update(self, name: str, runs: Sequence[_Run]) -> None:
        rows = [(_row(run), run.before["version"]) for run in runs if run.before is not None]
        matched = self._registry[name].repository.update_many(self._connection, rows)
        self._accept_writes(runs, matched)

    def _delete(self, name: str, runs: Sequence[_Run]) -> None:
        versions = {run.key[1]: run.before["version"] for run in runs if run.before is not None}
        parts = [
            (part.type, part.repository.delete_parts(self._connection, list(versions)))
            for part in self._registry.children(name)
        ]
        matched = self._registry[name].repository.delete_many(self._connection, versions)
        for kind, buried in parts:  # only now: with a parent that is refused they come back
            self._instances |= {(kind.name, one): None for one in buried}
            self._buried |= {(kind.name, one): version for one, version in buried.items()}
            self.changes.drop_parts(kind, buried, versions)
        self._accept_writes(runs, matched)
        self._buried |= {run.key: versions[run.key[1]] + 1 for run in runs}

    def _accept_writes(self, runs: Sequence[_Run], matched: set[UUID]) -> None:
        if len(matched) != len(runs):
            raise Contention("an instance was changed outside of its lane")
        for run in runs:
            self._accept(run)

    def _accept(self, run: _Run) -> None:
        self._instances[run.key] = run.after
        kind = self._registry[run.key[0]].type
        if run.after is not None:
            self.changes.put(kind, run.after, run.document)
        elif run.before is not None:
            self.changes.drop(kind, run.before)


def _key_of(job: OpenJob) -> _Key:
    return (job.resource, job.resource_id)


def _row(run: _Run) -> Row:
    assert run.after is not None  # noqa: S101 - inserts and updates leave a row
    return run.after


def _is_about_the_lane(job: OpenJob, refusal: Refusal) -> bool:
    """Whether what earlier jobs of the lane did, or did not do, may be why: existence, version, status.

    A version that has passed is somebody else's doing; one that was never made may be a predecessor's.
    """
    if isinstance(refusal, PreconditionFailed):
        return job.if_match is not None and job.if_match > refusal.current_version
    return isinstance(refusal, NotFound | Conflict)


def _refused(job: OpenJob, refusal: Refusal) -> Outcome:
    return Outcome(
        job_id=job.id,
        state=JobState.FAILED,
        attempt=job.attempt + 1,
        error=refusal.problem(job.request_id),
    )


def _expired(job: OpenJob) -> Outcome:
    return Outcome(job_id=job.id, state=JobState.EXPIRED, attempt=job.attempt)
