"""Routes about having a token: log in, refresh, log out, second factor, published keys. No rules."""

from collections.abc import Iterator

from pydantic import Field

from api_shim.routes.outcomes import NO_STORE
from api_shim.web.body import read_body
from api_shim.web.http import Request, Response, json_response
from api_shim.web.router import Answer, Limit, Route
from api_shim.web.threads import Threads
from models.database import Database
from models.failpoints import Step
from models.identity.principals import Principal
from models.identity.second_factors import RECOVERY_CODES, Enrolment, SecondFactors
from models.identity.sign_in import Session, SignIn
from models.identity.tokens import Tokens
from models.schema import Schema

_MAX_BODY_BYTES = 8 * 1024


class Login(Schema):
    """Body of POST /auth/login."""

    email: str = Field(min_length=3, max_length=254, examples=["ada@example.com"])
    password: str = Field(min_length=1, max_length=1024, examples=["correct horse battery staple"])
    otp: str | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="code or recovery code, for users with a second factor",
    )


class Refresh(Schema):
    """Body of POST /auth/refresh and /auth/logout."""

    refresh_token: str = Field(min_length=1, max_length=256, examples=["3Jx0…"])


class Confirmation(Schema):
    """Body of POST /auth/mfa/confirm."""

    otp: str = Field(min_length=1, max_length=64, examples=["123456"])


class LoggedIn(Schema):
    """Answer of POST /auth/login and /auth/refresh."""

    access_token: str = Field(examples=["eyJhbGciOiJFZERTQSIs…"])
    refresh_token: str = Field(
        description="good once, for POST /auth/refresh, which gives the next one", examples=["3Jx0…"]
    )
    token_type: str = Field(examples=["Bearer"])
    expires_in: int = Field(description="seconds that the access token is good for", examples=[1800])


class Enrolled(Schema):
    """Answer of POST /auth/mfa/enroll."""

    secret: str = Field(description="base32, for an authenticator", examples=["JBSWY3DPEHPK3PXP"])
    otpauth_uri: str = Field(
        description="the same, for a QR code",
        examples=["otpauth://totp/Waybill:ada%40example.org?secret=JBSWY3DPEHPK3PXP&issuer=Waybill"],
    )
    recovery_codes: list[str] = Field(
        min_length=RECOVERY_CODES,
        max_length=RECOVERY_CODES,
        description="shown once; each stands in for one code, once",
    )


class Auth:
    """The routes about having a token.

    Args:
        database: Where second factors are kept.
        sign_in: Begins, renews and ends sessions.
        second_factors: Keeps second factors.
        tokens: Knows the published keys.
        logins: Threads where passwords are checked: Argon2 takes a core for about 150 ms.
        threads: Threads for all that is quick.
    """

    def __init__(
        self,
        database: Database,
        sign_in: SignIn,
        second_factors: SecondFactors,
        tokens: Tokens,
        *,
        logins: Threads,
        threads: Threads,
    ) -> None:
        self._database = database
        self._sign_in = sign_in
        self._second_factors = second_factors
        self._tokens = tokens
        self._logins = logins
        self._threads = threads

    async def login(self, request: Request) -> Response:
        """Tokens for an email and its password; one answer, and one timing, for all that is wrong."""
        login = await read_body(request, Login, _MAX_BODY_BYTES)
        given = (login.email, login.password, login.otp, request.address)
        return _logged_in(await self._logins.call(self._sign_in.log_in, *given))

    async def refresh(self, request: Request) -> Response:
        """The next tokens of a session."""
        given = await read_body(request, Refresh, _MAX_BODY_BYTES)
        return _logged_in(await self._threads.call(self._sign_in.refresh, given.refresh_token))

    async def logout(self, request: Request) -> Response:
        """The end of a session; also of one that has ended."""
        given = await read_body(request, Refresh, _MAX_BODY_BYTES)
        await self._threads.call(self._sign_in.log_out, given.refresh_token)
        return Response(204, headers=(NO_STORE,))

    async def enroll(self, request: Request) -> Response:
        """A second factor, to be confirmed."""
        enrolled = await self._threads.call(self._enrol, request.principal)
        document = {
            "secret": enrolled.secret,
            "otpauthUri": enrolled.otpauth_uri,
            "recoveryCodes": enrolled.recovery_codes,
        }
        return json_response(200, document, (NO_STORE,))

    async def confirm(self, request: Request) -> Response:
        """From now on logging in takes a code."""
        given = await read_body(request, Confirmation, _MAX_BODY_BYTES)
        await self._threads.call(self._confirm, request.principal, given.otp)
        return Response(204, headers=(NO_STORE,))

    async def published_keys(self, request: Request) -> Response:
        """The public keys that access tokens are signed with (RFC 7517)."""
        cacheable = (b"cache-control", b"public, max-age=300")
        return json_response(200, self._tokens.public_jwk_set(), (cacheable,))

    def _enrol(self, principal: Principal) -> Enrolment:
        with self._database.transaction(Step.ENROLL_MFA) as connection:
            return self._second_factors.enrol(connection, principal)

    def _confirm(self, principal: Principal, otp: str) -> None:
        with self._database.transaction(Step.CONFIRM_MFA) as connection:
            self._second_factors.confirm(connection, principal.id, otp)

    def routes(self) -> Iterator[Route]:
        """Log-in, sessions, second factor and keys."""
        logged_in = {200: Answer("Logged in", LoggedIn, ("Cache-Control",))}
        yield Route(
            method="POST",
            path="/auth/login",
            handle=self.login,
            operation_id="login",
            limit=Limit.LOGIN,
            summary="Log in: tokens for an email and its password",
            tag="auth",
            is_public=True,
            body={"application/json": Login},
            answers=logged_in,
            errors=(401, 413, 415, 429),
        )
        yield Route(
            method="POST",
            path="/auth/refresh",
            handle=self.refresh,
            operation_id="refresh",
            limit=Limit.LOGIN,
            summary="Go on with a session: new tokens for a refresh token, which is thereby used up",
            tag="auth",
            is_public=True,
            body={"application/json": Refresh},
            answers=logged_in,
            errors=(401, 413, 415, 429),
        )
        yield Route(
            method="POST",
            path="/auth/logout",
            handle=self.logout,
            operation_id="logout",
            limit=Limit.LOGIN,
            summary="Log out: end the session of a refresh token",
            tag="auth",
            is_public=True,
            body={"application/json": Refresh},
            answers={204: Answer("Logged out, or was already", None, ("Cache-Control",))},
            errors=(413, 415, 429),
        )
        yield Route(
            method="POST",
            path="/auth/mfa/enroll",
            handle=self.enroll,
            operation_id="enroll_mfa",
            limit=Limit.LOGIN,
            summary="Prepare a second factor: a secret and recovery codes, shown once",
            tag="auth",
            permission="own",
            answers={200: Answer("To be confirmed", Enrolled, ("Cache-Control",))},
            errors=(409, 429),
        )
        yield Route(
            method="POST",
            path="/auth/mfa/confirm",
            handle=self.confirm,
            operation_id="confirm_mfa",
            limit=Limit.LOGIN,
            summary="Turn the second factor on, by a code of it",
            tag="auth",
            permission="own",
            body={"application/json": Confirmation},
            answers={204: Answer("Logging in takes a code from now on", None, ("Cache-Control",))},
            errors=(404, 409, 413, 415, 429),
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


def _logged_in(session: Session) -> Response:
    document = {
        "accessToken": session.access_token,
        "refreshToken": session.refresh_token,
        "tokenType": "Bearer",
        "expiresIn": session.expires_in,
    }
    return json_response(200, document, (NO_STORE,))
