"""POST /auth/login and the published keys. Passwords are checked in threads of their own."""

from collections.abc import Iterator

from pydantic import Field, ValidationError

from api_shim.routes.outcomes import NO_STORE
from api_shim.web.http import JSON, Request, Response, json_response
from api_shim.web.router import Answer, Limit, Route
from api_shim.web.threads import Threads
from models import strict_json
from models.database import Database
from models.errors import Unauthorized
from models.identity.principals import Principal
from models.identity.tokens import Tokens
from models.identity.users import Users, password_matches
from models.schema import Schema, refusal

_MAX_LOGIN_BYTES = 8 * 1024


class Login(Schema):
    """Body of POST /auth/login."""

    email: str = Field(min_length=3, max_length=254, examples=["ada@example.com"])
    password: str = Field(min_length=1, max_length=1024)
    otp: str | None = Field(None, max_length=64, description="for users with a second factor")


class LoggedIn(Schema):
    """Answer of POST /auth/login."""

    access_token: str
    token_type: str = Field(examples=["Bearer"])
    expires_in: int = Field(description="seconds")


class Auth:
    """The routes that need no token, because they are about having one.

    Args:
        database: Where users are kept.
        users: Finds them.
        tokens: Issues tokens.
        threads: Where passwords are checked: Argon2 takes a core for about 150 ms.
    """

    def __init__(self, database: Database, users: Users, tokens: Tokens, threads: Threads) -> None:
        self._database = database
        self._users = users
        self._tokens = tokens
        self._threads = threads

    async def login(self, request: Request) -> Response:
        """A token for an email and its password; one answer, and one timing, for all that is wrong."""
        request.check_media_type(JSON)
        body = await request.body(_MAX_LOGIN_BYTES)
        strict_json.parse(body)
        try:
            login = Login.model_validate_json(body, strict=True, by_alias=True, by_name=False)
        except ValidationError as error:
            raise refusal(error) from None
        principal = await self._threads.call(self._check, login)
        document = {
            "accessToken": self._tokens.issue(principal),
            "tokenType": "Bearer",
            "expiresIn": int(self._tokens.lifetime.total_seconds()),
        }
        return json_response(200, document, (NO_STORE,))

    def _check(self, login: Login) -> Principal:
        with self._database.snapshot() as connection:
            user = self._users.by_email(connection, login.email)
        if not password_matches(login.password, user) or user is None:
            raise Unauthorized("The email or the password is wrong")
        return user.principal

    async def published_keys(self, request: Request) -> Response:
        """The public keys that access tokens are signed with (RFC 7517)."""
        cacheable = (b"cache-control", b"public, max-age=300")
        return json_response(200, self._tokens.public_jwk_set(), (cacheable,))

    def routes(self) -> Iterator[Route]:
        """Log-in and keys."""
        yield Route(
            method="POST",
            path="/auth/login",
            handle=self.login,
            operation_id="login",
            limit=Limit.LOGIN,
            summary="Log in: an access token for an email and its password",
            tag="auth",
            is_public=True,
            body={"application/json": Login},
            answers={200: Answer("Logged in", LoggedIn, ("Cache-Control",))},
            errors=(401, 413, 415),
        )
        yield Route(
            method="GET",
            path="/.well-known/jwks.json",
            handle=self.published_keys,
            operation_id="get_jwks",
            summary="The public keys that access tokens are signed with",
            tag="auth",
            is_public=True,
            answers={200: Answer("A JWK set", "JwkSet", ("Cache-Control",))},
        )
