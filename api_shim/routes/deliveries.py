"""What became of callbacks: the log of an endpoint, resending one, recovering what was missed."""

from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import UUID

from pydantic import Field

from api_shim.announcing import JobAnnouncer
from api_shim.description import words
from api_shim.routes.callback_endpoints import endpoint_id
from api_shim.routes.outcomes import BASE, NO_STORE
from api_shim.routes.paging import Paging
from api_shim.routes.refusals import Refusals
from api_shim.web import query
from api_shim.web.body import parse_body
from api_shim.web.http import JSON, Request, Response, json_response
from api_shim.web.router import Answer, Limit, Route
from api_shim.web.threads import Threads
from models.cursor import Cursors
from models.database import Database
from models.deliveries.delivery_log import DeliveryLog, LoggedDelivery
from models.deliveries.endpoints import CallbackEndpoints
from models.errors import Detail, Invalid, NotFound
from models.failpoints import Step
from models.ids import parse_id
from models.schema import Schema, UtcTime

_PATH = f"{BASE}/callback-endpoints/{{id}}"
_STATES = ("pending", "retrying", "delivered", "failed")
_MAX_BYTES = 1024


class DeliveryRead(Schema):
    """One callback, and what became of it."""

    id: UUID
    job_id: UUID
    state: str = Field(json_schema_extra={"enum": list(_STATES)})
    attempts: int
    response_status: int = Field(0, description="absent until it was answered")
    error: str = Field("", description="absent unless the last attempt failed")


class DeliveryPage(Schema):
    """Callbacks, newest first."""

    items: list[DeliveryRead]
    next_cursor: str | None = Field(description="null on the last page")


class Recovery(Schema):
    """Body of POST …/recover."""

    since: UtcTime | None = Field(None, description="outcomes from this time on; else all that are kept")


class Recovered(Schema):
    """What a recovery set going."""

    recovered: int = Field(
        description="callbacks that are sent (again) because of it, up to 10,000 that had failed and as many "
        "that were missed; the rest of what was missed follows by itself"
    )


class Deliveries:
    """The routes; each user sees and resends only what went to their own endpoints.

    Args:
        database: Where they are kept.
        endpoints: Whose they are.
        threads: Where the database is asked.
        cursors: Sign the places in the list.
        announcer: Told of what is to be sent again.
        refusals: Records what was refused.
    """

    def __init__(
        self,
        database: Database,
        endpoints: CallbackEndpoints,
        threads: Threads,
        cursors: Cursors,
        announcer: JobAnnouncer,
        refusals: Refusals,
    ) -> None:
        self._database = database
        self._endpoints = endpoints
        self._threads = threads
        self._cursors = cursors
        self._announcer = announcer
        self._refusals = refusals
        self._log = DeliveryLog()

    async def page(self, request: Request) -> Response:
        """One page of what was sent to an endpoint, newest first."""
        owner, endpoint = request.principal.id, endpoint_id(request)
        state = query.choice(request.query, "state", _STATES)
        paging = Paging(request, self._cursors, ["deliveries", str(endpoint), state])
        found = await self._threads.call(
            self._read_page, owner, endpoint, state, paging.after, paging.limit + 1
        )
        return paging.answer(found, LoggedDelivery.document, lambda one: [str(one.id)])

    async def resend(self, request: Request) -> Response:
        """Send a callback once more, under its ``webhook-id``."""
        async with self._refusals.recorded("delivery.resend", request):
            identifier = parse_id(request.parameters["id"])
            if identifier is None:
                raise NotFound("There is no such delivery")
            renewed = await self._threads.call(self._resend, request.principal.id, identifier)
        self._announcer.deliveries([renewed.id])
        return json_response(202, renewed.document(), (NO_STORE,))

    async def recover(self, request: Request) -> Response:
        """Enable the endpoint if need be, and send what failed or was missed since then."""
        owner = request.principal.id
        async with self._refusals.recorded("endpoint.recover", request):
            since = await _since(request)
            count = await self._threads.call(self._recover, owner, endpoint_id(request), since)
        return json_response(202, {"recovered": count}, (NO_STORE,))

    # ---- in a thread ---------------------------------------------------------------------

    def _read_page(
        self, owner_id: UUID, endpoint: UUID, state: str | None, before: UUID | None, limit: int
    ) -> list[LoggedDelivery]:
        with self._database.snapshot() as connection:
            self._endpoints.find(connection, owner_id, endpoint)
            return self._log.page(connection, endpoint, state=state, before=before, limit=limit)

    def _resend(self, owner_id: UUID, identifier: UUID) -> LoggedDelivery:
        with self._database.transaction(Step.RESEND) as connection:
            return self._log.resend(connection, owner_id, identifier)

    def _recover(self, owner_id: UUID, identifier: UUID, since: datetime | None) -> int:
        with self._database.transaction(Step.RECOVER) as connection:
            endpoint = self._endpoints.enable(connection, owner_id, identifier, since)
            return self._log.recover(connection, endpoint, since)

    def routes(self) -> Iterator[Route]:
        """List, resend, recover."""
        yield Route(
            method="GET",
            path=_PATH + "/deliveries",
            handle=self.page,
            operation_id="list_deliveries",
            summary="List what was sent to a receiver, newest first",
            tag="callbacks",
            permission="own",
            limit=Limit.CONTROL,
            parameters=(words.DELIVERY_STATE, words.LIMIT, words.CURSOR),
            answers={200: Answer("One page", DeliveryPage, ("Cache-Control",))},
            errors=(404,),
        )
        yield Route(
            method="POST",
            path=_PATH + "/recover",
            handle=self.recover,
            operation_id="recover_callback_endpoint",
            summary="Enable a receiver again, and send it what failed or was missed",
            tag="callbacks",
            permission="own",
            limit=Limit.CONTROL,
            body={"application/json": Recovery},
            body_is_optional=True,
            answers={202: Answer("Under way", Recovered, ("Cache-Control",))},
            errors=(404, 413, 415),
        )
        yield Route(
            method="POST",
            path=f"{BASE}/deliveries/{{id}}/resend",
            handle=self.resend,
            operation_id="resend_delivery",
            summary="Send a callback once more, under the same webhook-id",
            tag="callbacks",
            permission="own",
            limit=Limit.CONTROL,
            answers={202: Answer("Under way: the delivery", DeliveryRead, ("Cache-Control",))},
            errors=(404, 409),
        )


async def _since(request: Request) -> datetime | None:
    """The time in the body; None where there is no body, or no time in it.

    Raises:
        Invalid: The body is something else, or the time is yet to come.
    """
    body = await request.body(_MAX_BYTES)
    if not body:
        return None
    request.check_media_type(JSON)
    since = parse_body(body, Recovery).since
    if since is not None and since > datetime.now(UTC):
        raise Invalid("There is nothing to recover yet", details=[Detail("since", "is in the future")])
    return since
