"""Dead letters: listed, grouped, redriven one or many. How they are judged: ``models.dead_letters``."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Literal, TypeVar
from uuid import UUID

from pydantic import BaseModel, Field, JsonValue, field_validator

from api_shim.announcing import JobAnnouncer
from api_shim.description import words
from api_shim.routes import outcomes
from api_shim.routes.jobs import OwnJob
from api_shim.routes.outcomes import BASE, NO_STORE
from api_shim.routes.paging import Paging
from api_shim.routes.refusals import Refusals, actor_of
from api_shim.web import query
from api_shim.web.body import read_body
from api_shim.web.http import Request, Response, json_response
from api_shim.web.router import Answer, Limit, Route
from api_shim.web.threads import Threads
from models.audit import LONGEST_REASON, Actor, told_reason
from models.cursor import Cursors
from models.database import Database
from models.dead_letters.judging import Prospect
from models.dead_letters.letters import DeadLetter, DeadLetterQuery, DeadLetters, LetterGroup
from models.dead_letters.redriving import REDRIVE, RedriveOrder, Redriver
from models.dead_letters.redriving import Answer as Redriven
from models.errors import Forbidden, Invalid, Refusal
from models.job import Job, Operation, Priority
from models.schema import Schema, UtcTime

MOST_AT_ONCE = 1000
_MAX_BYTES = 512 * 1024
_PATH = f"{BASE}/dead-letters"
_GROUP = "^[0-9a-f]{16}$"
_Body = TypeVar("_Body", bound=BaseModel)


class RedriveRequest(Schema):
    """Body of POST /jobs/{id}/redrive."""

    reason: str = Field(min_length=1, max_length=LONGEST_REASON, examples=["The schema was mended"])
    patch: dict[str, JsonValue] | None = Field(
        None, description="merge patch (RFC 7396) of the job's data", examples=[{"name": "mended"}]
    )
    dry_run: bool = Field(False, description="only say what would come of it")

    @field_validator("reason")
    @classmethod
    def _tells_something(cls, reason: str) -> str:
        return told_reason(reason)


class LetterFilter(Schema):
    """Which dead letters."""

    resource: str | None = Field(None, min_length=1, max_length=63)
    resource_id: UUID | None = None
    operation: Operation | None = None
    error: str | None = Field(None, pattern=_GROUP, description="a group of GET /dead-letters?groupBy=error")
    died_after: UtcTime | None = None
    died_before: UtcTime | None = None


class RedriveManyRequest(RedriveRequest):
    """Body of POST /dead-letters/redrive: ``ids``, or a ``filter``."""

    ids: list[UUID] | None = Field(
        None, min_length=1, max_length=MOST_AT_ONCE, examples=[["019a9c5e-7b1e-7d30-8a52-3f1d6b1c2e4f"]]
    )
    filter: LetterFilter | None = Field(None, description=f"the oldest {MOST_AT_ONCE:,} that it fits")


class RedriveForeseen(Schema):
    """What a redrive would lead to, by today's schema, rules and version."""

    dry_run: Literal[True] = True
    job_id: UUID
    generation: int
    operation: Operation
    resource: str
    resource_id: UUID
    if_match: int | None
    data: dict[str, JsonValue] | None = Field(description="that it would be applied with")
    waits: bool = Field(description="others are ahead in its lane, so it may turn out otherwise")
    outcome: Literal["succeeded", "failed", "dead", "unknown"]
    version: int | None = None
    result: dict[str, JsonValue] | None = None
    error: dict[str, JsonValue] | None = Field(None, description="the problem")
    reason: str | None = None


class DeadLetterRoutes:
    """The routes; for admins.

    Args:
        database: Where they rest.
        own: The job in the path.
        redriver: Judges, redrives, audits.
        threads: Where the database is asked.
        cursors: Sign the places in a list.
        announcer: Told of redriven jobs.
        refusals: Records what was refused before it was understood.
    """

    def __init__(
        self,
        database: Database,
        own: OwnJob,
        redriver: Redriver,
        threads: Threads,
        cursors: Cursors,
        announcer: JobAnnouncer,
        refusals: Refusals,
    ) -> None:
        self._database = database
        self._own = own
        self._redriver = redriver
        self._threads = threads
        self._cursors = cursors
        self._announcer = announcer
        self._refusals = refusals
        self._letters = DeadLetters()

    # ---- looking -------------------------------------------------------------------------

    async def page(self, request: Request) -> Response:
        """One page of dead letters, or of groups of them."""
        _check_admin(request)
        given = request.query
        wanted = DeadLetterQuery(
            resource=query.words(given, "resource", 63),
            resource_id=query.identifier(given, "resourceId"),
            operation=query.choice(given, "operation", [str(one) for one in Operation]),
            group=query.words(given, "error", 16),
            died_after=query.moment(given, "diedAfter"),
            died_before=query.moment(given, "diedBefore"),
            discarded=query.choice(given, "discarded", ("true", "false")) == "true",
        )
        question = ["dead-letters", *(given.get(one.name) for one in _FILTERS)]
        paging = Paging(request, self._cursors, question, length=2)
        if query.choice(given, "groupBy", ("error",)) is not None:
            groups = await self._threads.call(self._groups, wanted, paging.place, paging.limit + 1)
            return paging.answer(groups, LetterGroup.document, lambda one: [str(one.count), one.group])
        letters = await self._threads.call(self._page, wanted, paging.place, paging.limit + 1)
        return paging.answer(letters, DeadLetter.document, _place)

    def _page(self, wanted: DeadLetterQuery, place: list[str] | None, limit: int) -> list[DeadLetter]:
        before = (datetime.fromisoformat(place[0]), UUID(place[1])) if place else None
        with self._database.snapshot() as connection:
            return self._letters.page(connection, wanted, before=before, limit=limit)

    def _groups(self, wanted: DeadLetterQuery, place: list[str] | None, limit: int) -> list[LetterGroup]:
        after = (int(place[0]), place[1]) if place else None
        with self._database.snapshot() as connection:
            return self._letters.groups(connection, wanted, after=after, limit=limit)

    # ---- redriving -----------------------------------------------------------------------

    async def redrive(self, request: Request) -> Response:
        """202 with the job of the new generation; 200 with what a dry run foresees."""
        async with self._refusals.recorded(REDRIVE, request):
            job = await self._own(request)
            _check_admin(request)
            asked = await read_body(request, RedriveRequest, _MAX_BYTES)
        actor = actor_of(request)
        answer = await self._threads.call(self._redriver.redrive_one, job.id, _order(asked), actor)
        if isinstance(answer, Prospect):
            return json_response(200, answer.document(request.id), (NO_STORE,))
        self._announce([answer])
        return outcomes.accepted(answer, (NO_STORE,))

    async def redrive_many(self, request: Request) -> Response:
        """The same for many, each with an answer of its own, in the order in which they are redriven."""
        async with self._refusals.recorded(REDRIVE, request, "dead-letters"):
            _check_admin(request)
            asked = await read_body(request, RedriveManyRequest, _MAX_BYTES)
            if (asked.ids is None) == (asked.filter is None):
                raise Invalid("Give either ids or a filter")
            if asked.ids is not None and len(set(asked.ids)) != len(asked.ids):
                raise Invalid("An id is given more than once")
        answers, remaining = await self._threads.call(self._redrive_many, asked, actor_of(request))
        self._announce(answers)
        document: dict[str, Any] = {
            "jobs": [_told(place, answer, request.id) for place, answer in enumerate(answers)]
        }
        if asked.filter is not None:
            document["remaining"] = remaining
        return json_response(200 if asked.dry_run else 202, document, (NO_STORE,))

    def _redrive_many(self, asked: RedriveManyRequest, actor: Actor) -> tuple[list[Redriven], int]:
        ids, remaining = asked.ids or [], 0
        if asked.filter is not None:
            given = asked.filter.model_dump()
            wanted = DeadLetterQuery(group=given.pop("error"), **given)
            with self._database.snapshot() as connection:
                ids, found = self._letters.oldest(connection, wanted, MOST_AT_ONCE)
            remaining = found - len(ids)
        return self._redriver.redrive(ids, _order(asked), actor) if ids else [], remaining

    def _announce(self, answers: list[Redriven]) -> None:
        ready: dict[Priority, list[UUID]] = {}
        for answer in answers:
            if isinstance(answer, Job):
                ready.setdefault(answer.priority, []).append(answer.id)
        self._announcer.jobs(ready)

    def routes(self) -> Iterator[Route]:
        """The routes."""
        yield Route(
            method="GET",
            path=_PATH,
            handle=self.page,
            operation_id="list_dead_letters",
            summary="List dead letters, latest first; or their groups by error, most first",
            tag="dead letters",
            permission="admin",
            limit=Limit.CONTROL,
            parameters=(*_FILTERS, words.LIMIT, words.CURSOR),
            answers={200: Answer("One page", "DeadLetterPage", ("Cache-Control",))},
        )
        yield Route(
            method="POST",
            path=f"{BASE}/jobs/{{id}}/redrive",
            handle=self.redrive,
            operation_id="redrive_job",
            summary="Apply a dead job once more, edited if need be; or only foresee it",
            tag="dead letters",
            permission="admin",
            limit=Limit.CONTROL,
            body={"application/json": RedriveRequest},
            answers={
                200: Answer("What would come of it", RedriveForeseen, ("Cache-Control",)),
                202: Answer(
                    "Redriven: the job, of the next generation",
                    "Job",
                    ("Location", "Retry-After", "Cache-Control"),
                ),
            },
            errors=(404, 409, 410, 412, 413, 415),
        )
        yield Route(
            method="POST",
            path=f"{_PATH}/redrive",
            handle=self.redrive_many,
            operation_id="redrive_dead_letters",
            summary=f"Redrive up to {MOST_AT_ONCE:,} dead letters, each answered in its place",
            tag="dead letters",
            permission="admin",
            limit=Limit.CONTROL,
            body={"application/json": RedriveManyRequest},
            answers={
                200: Answer("What would come of it, for each", "RedriveAnswer", ("Cache-Control",)),
                202: Answer("For each: the job, or why it is refused", "RedriveAnswer", ("Cache-Control",)),
            },
            errors=(413, 415),
        )


_FILTERS = (
    words.query("groupBy", "Groups in place of letters.", {"type": "string", "enum": ["error"]}),
    words.query("resource", "Only of this resource.", {"type": "string", "minLength": 1, "maxLength": 63}),
    words.query("resourceId", "Only on this instance.", {"type": "string", "format": "uuid"}),
    words.query("operation", "Only these.", {"type": "string", "enum": [str(one) for one in Operation]}),
    words.query("error", "Only of this group.", {"type": "string", "minLength": 1, "maxLength": 16}),
    words.query("diedAfter", "Only later than this.", {"type": "string", "format": "date-time"}),
    words.query("diedBefore", "Only earlier than this.", {"type": "string", "format": "date-time"}),
    words.query(
        "discarded",
        "`true`: those that were put away, in place of those that wait.",
        {"type": "string", "enum": ["true", "false"], "default": "false"},
    ),
)


def _check_admin(request: Request) -> None:
    if not request.principal.is_admin:
        raise Forbidden("Dead letters are for admins")


def _order(asked: RedriveRequest) -> RedriveOrder:
    return RedriveOrder(reason=asked.reason, patch=asked.patch, dry_run=asked.dry_run)


def _told(place: int, answer: Redriven, request_id: str) -> dict[str, Any]:
    match answer:
        case Job() as job:
            return job.document()
        case Prospect() as prospect:
            return prospect.document(request_id)
        case Refusal() as refused:
            return {"index": place, "error": refused.problem(request_id)}


def _place(letter: DeadLetter) -> list[str]:
    died_at = letter.job.finished_at
    return [died_at.isoformat() if died_at is not None else "", str(letter.job.id)]
