"""Callback endpoints: register, list, rotate, remove. What is sent to them, and how, is the worker's."""

from collections.abc import Iterator
from uuid import UUID

from pydantic import Field, field_validator

from api_shim.description import words
from api_shim.routes.outcomes import BASE, NO_STORE
from api_shim.routes.paging import Paging
from api_shim.routes.refusals import Refusals
from api_shim.web.body import read_body
from api_shim.web.http import Request, Response, json_response
from api_shim.web.router import Answer, Limit, Route
from api_shim.web.threads import Threads
from models.cursor import Cursors
from models.database import Database
from models.deliveries.address_guard import check_url
from models.deliveries.endpoint_secrets import new_secret
from models.deliveries.endpoints import NO_ENDPOINT, CallbackEndpoint, CallbackEndpoints, EventType
from models.errors import NotFound
from models.failpoints import Step
from models.ids import parse_id
from models.schema import Schema, UtcTime

_PATH = f"{BASE}/callback-endpoints"
_MAX_BYTES = 16 * 1024


class NewEndpoint(Schema):
    """Body of POST /callback-endpoints."""

    url: str = Field(min_length=1, max_length=2048, examples=["https://example.com/hooks/waybill"])
    description: str | None = Field(None, max_length=1000)
    events: list[EventType] = Field([], max_length=5, description="sent for every job of yours")

    @field_validator("description")
    @classmethod
    def _printable(cls, description: str | None) -> str | None:
        if description is not None and not description.isprintable():
            raise ValueError("must not hold control characters")
        return description


class EndpointRead(Schema):
    """A registered endpoint, as lists show it."""

    id: UUID
    url: str
    description: str | None
    events: list[EventType]
    disabled: bool
    disabled_at: UtcTime | None
    disabled_reason: str | None
    created_at: UtcTime


class EndpointWithSecret(EndpointRead):
    """An endpoint with its new secret, shown this once."""

    secret: str = Field(examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])


class EndpointPage(Schema):
    """Endpoints, oldest first."""

    items: list[EndpointRead]
    next_cursor: str | None = Field(description="null on the last page")


class CallbackEndpointRoutes:
    """The endpoint routes; each user sees and removes only their own.

    Args:
        database: Where they are kept.
        endpoints: Keeps them.
        threads: Where the database is asked.
        cursors: Sign the places in the list.
        refusals: Records what was refused.
        allow_private: Development: http and private addresses may be registered.
    """

    def __init__(
        self,
        database: Database,
        endpoints: CallbackEndpoints,
        threads: Threads,
        cursors: Cursors,
        refusals: Refusals,
        *,
        allow_private: bool,
    ) -> None:
        self._database = database
        self._endpoints = endpoints
        self._threads = threads
        self._cursors = cursors
        self._refusals = refusals
        self._allow_private = allow_private

    async def register(self, request: Request) -> Response:
        """Keep an endpoint; its secret is told in this answer and never again."""
        secret = new_secret()
        async with self._refusals.recorded("endpoint.register", request, _PATH):
            wanted = await read_body(request, NewEndpoint, _MAX_BYTES)
            check_url(wanted.url, allow_private=self._allow_private)
            made = await self._threads.call(self._register, request.principal.id, wanted, secret)
        location = (b"location", f"{_PATH}/{made.id}".encode())
        return json_response(201, {**made.document(), "secret": secret}, (location, NO_STORE))

    async def page(self, request: Request) -> Response:
        """One page of the caller's endpoints, oldest first."""
        owner = request.principal.id
        paging = Paging(request, self._cursors, ["callback-endpoints", str(owner)])
        found = await self._threads.call(self._read_page, owner, paging.after, paging.limit + 1)
        return paging.answer(found, CallbackEndpoint.document, lambda one: [str(one.id)])

    async def rotate(self, request: Request) -> Response:
        """A new secret, told in this answer and never again; for a day the old one signs beside it."""
        secret = new_secret()
        async with self._refusals.recorded("endpoint.rotate", request):
            identifier = endpoint_id(request)
            rotated = await self._threads.call(self._rotate, request.principal.id, identifier, secret)
        return json_response(200, {**rotated.document(), "secret": secret}, (NO_STORE,))

    async def remove(self, request: Request) -> Response:
        """Forget an endpoint: nothing more is sent to it."""
        async with self._refusals.recorded("endpoint.remove", request):
            await self._threads.call(self._remove, request.principal.id, endpoint_id(request))
        return Response(204)

    # ---- in a thread ---------------------------------------------------------------------

    def _register(self, owner_id: UUID, wanted: NewEndpoint, secret: str) -> CallbackEndpoint:
        with self._database.transaction(Step.REGISTER_ENDPOINT) as connection:
            return self._endpoints.register(
                connection,
                owner_id=owner_id,
                url=wanted.url,
                description=wanted.description,
                events=list(dict.fromkeys(wanted.events)),
                secret=secret,
            )

    def _read_page(self, owner_id: UUID, after: UUID | None, limit: int) -> list[CallbackEndpoint]:
        with self._database.snapshot() as connection:
            return self._endpoints.page(connection, owner_id, after=after, limit=limit)

    def _rotate(self, owner_id: UUID, identifier: UUID, secret: str) -> CallbackEndpoint:
        with self._database.transaction(Step.ROTATE_ENDPOINT) as connection:
            return self._endpoints.rotate(connection, owner_id, identifier, secret)

    def _remove(self, owner_id: UUID, identifier: UUID) -> None:
        with self._database.transaction(Step.REMOVE_ENDPOINT) as connection:
            self._endpoints.remove(connection, owner_id, identifier)

    def routes(self) -> Iterator[Route]:
        """Register, list, rotate, remove."""
        yield Route(
            method="POST",
            path=_PATH,
            handle=self.register,
            operation_id="register_callback_endpoint",
            summary="Register a receiver of outcomes; its secret is shown this once",
            tag="callbacks",
            permission="own",
            limit=Limit.CONTROL,
            body={"application/json": NewEndpoint},
            answers={201: Answer("Registered", EndpointWithSecret, ("Location", "Cache-Control"))},
            errors=(409, 413, 415),
        )
        yield Route(
            method="GET",
            path=_PATH,
            handle=self.page,
            operation_id="list_callback_endpoints",
            summary="List your receivers",
            tag="callbacks",
            permission="own",
            limit=Limit.CONTROL,
            parameters=(words.LIMIT, words.CURSOR),
            answers={200: Answer("One page", EndpointPage, ("Cache-Control",))},
        )
        yield Route(
            method="POST",
            path=_PATH + "/{id}/rotate",
            handle=self.rotate,
            operation_id="rotate_callback_secret",
            summary="Get a new secret; the old one signs beside it for 24 hours",
            tag="callbacks",
            permission="own",
            limit=Limit.CONTROL,
            answers={200: Answer("Rotated", EndpointWithSecret, ("Cache-Control",))},
            errors=(404,),
        )
        yield Route(
            method="DELETE",
            path=_PATH + "/{id}",
            handle=self.remove,
            operation_id="remove_callback_endpoint",
            summary="Remove a receiver",
            tag="callbacks",
            permission="own",
            limit=Limit.CONTROL,
            answers={204: Answer("Removed")},
            errors=(404,),
        )


def endpoint_id(request: Request) -> UUID:
    """The endpoint in the path.

    Raises:
        NotFound: It is no id that an endpoint could have.
    """
    found = parse_id(request.parameters["id"])
    if found is None:
        raise NotFound(NO_ENDPOINT)
    return found
