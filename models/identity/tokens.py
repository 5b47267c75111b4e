"""Access tokens: issue and verify JWTs. A key's algorithm is the key's own, never the header's."""

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

import jwt

from models.errors import ConfigurationError, Unauthorized
from models.identity.keys import JwkSet
from models.identity.principals import Principal, Role
from models.ids import new_id

ISSUER = AUDIENCE = "waybill"
MAX_TOKEN_LENGTH = 4096
_ALGORITHMS = {"OKP": "EdDSA", "oct": "HS256", "RSA": "RS256"}
_REQUIRED = ["iss", "aud", "exp", "iat", "nbf", "jti", "sub"]


class Tokens:
    """Signs with the first key of the set, verifies with any of them.

    Args:
        jwk_set: JWKs, each with a ``kid``; the first must be private.
        lifetime: How long an access token is good for.
    """

    def __init__(self, jwk_set: JwkSet, *, lifetime: timedelta = timedelta(minutes=30)) -> None:
        self.lifetime = lifetime
        self._keys: dict[str, jwt.PyJWK] = {}
        for key in jwk_set["keys"]:
            algorithm = _ALGORITHMS.get(key["kty"])
            if algorithm is None:
                raise ConfigurationError(f"WAYBILL_JWT_KEYS: key type {key['kty']} is not supported")
            try:
                self._keys[key["kid"]] = jwt.PyJWK(key, algorithm=algorithm)
            except (jwt.PyJWTError, ValueError, TypeError) as error:
                raise ConfigurationError(
                    f"WAYBILL_JWT_KEYS: key {key['kid']} is spoiled ({error})"
                ) from error
        if not {"d", "k"} & set(jwk_set["keys"][0]):
            raise ConfigurationError("WAYBILL_JWT_KEYS: the first key signs, so it must be a private one")
        self._signer = next(iter(self._keys.values()))

    def issue(self, principal: Principal) -> str:
        """A token for ``principal``, good for :attr:`lifetime`."""
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": str(principal.id),
            "email": principal.email,
            "role": str(principal.role),
            "iat": now,
            "nbf": now,
            "exp": now + int(self.lifetime.total_seconds()),
            "jti": str(new_id()),
            "typ": "access",
        }
        key = self._signer
        return jwt.encode(claims, key.key, algorithm=key.algorithm_name, headers={"kid": key.key_id})

    def verify(self, token: str) -> tuple[Principal, float]:
        """The principal that ``token`` speaks for, and when it expires (POSIX seconds).

        Raises:
            Unauthorized: Malformed, unknown key, bad signature, expired, or not an access token.
        """
        if len(token) > MAX_TOKEN_LENGTH:
            raise Unauthorized("The token is too long")
        try:
            key = self._keys[jwt.get_unverified_header(token)["kid"]]
            claims: Mapping[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=[key.algorithm_name],
                issuer=ISSUER,
                audience=AUDIENCE,
                options={"require": _REQUIRED},
                leeway=5,
            )
            if claims.get("typ") != "access":
                raise Unauthorized("This is not an access token")
            principal = Principal(UUID(claims["sub"]), str(claims["email"]), Role(claims["role"]))
            return principal, float(claims["exp"])
        except jwt.ExpiredSignatureError as error:
            raise Unauthorized("The token has expired; log in again") from error
        except (jwt.PyJWTError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise Unauthorized("The token is not valid") from error

    def public_jwk_set(self) -> JwkSet:
        """The public halves (RFC 7517); symmetric keys are left out."""
        published = []
        for kid, key in self._keys.items():
            if key.algorithm_name == "HS256":
                continue
            is_private = hasattr(key.key, "public_key")
            public = key.Algorithm.to_jwk(key.key.public_key() if is_private else key.key, as_dict=True)
            published.append({**public, "kid": kid, "alg": key.algorithm_name, "use": "sig"})
        return {"keys": published}
