"""Access tokens: issue and verify JWTs. A key's algorithm is the key's own, never the header's."""

import base64
import binascii
import json
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from models.errors import ConfigurationError, Unauthorized
from models.identity.keys import JwkSet
from models.identity.principals import Principal, Role
from models.ids import new_id

ISSUER = AUDIENCE = "waybill"
MAX_TOKEN_LENGTH = 4096
MAX_HEADER_LENGTH = 512
"""Of the header as sent, in base64."""

_ALGORITHMS = {"OKP": "EdDSA", "oct": "HS256", "RSA": "RS256"}
_LEAST_HS256_BYTES = 32
_LEAST_RS256_BITS = 2048
_HEADER_MEMBERS = frozenset({"alg", "kid", "typ"})
"""Everything else (``crit``, ``jwk``, ``jku``, ``x5u``, ``b64`` …) would be an instruction: we take none."""

_TIMES = ("exp", "iat", "nbf")
_REQUIRED = ["iss", "aud", "exp", "iat", "nbf", "jti", "sub"]
_LEEWAY_SECONDS = 5


class Verified(NamedTuple):
    """What a good token says.

    Attributes:
        principal: Who it speaks for, with the role that it had then.
        expires_at: POSIX seconds.
        issued_at: POSIX seconds.
    """

    principal: Principal
    expires_at: float
    issued_at: float


class Tokens:
    """Signs with the first key of the set, verifies with any of them.

    Args:
        jwk_set: JWKs, each with a ``kid``; the first must be private.
        lifetime: How long an access token is good for.
        changed_set: Asked now and then: the set as it is now, or None where it has not changed.

    Attributes:
        generation: Counts changes of the set: what was verified under an earlier one is verified anew.
    """

    def __init__(
        self,
        jwk_set: JwkSet,
        *,
        lifetime: timedelta = timedelta(minutes=30),
        changed_set: Callable[[], JwkSet | None] = lambda: None,
    ) -> None:
        self.lifetime = lifetime
        self.generation = 0
        self._changed_set = changed_set
        self._keys = _keys_of(jwk_set)

    def reload(self) -> None:
        """Take up keys that were rotated since; a set that cannot be used is left alone."""
        try:
            changed = self._changed_set()
            if changed is not None:
                self._keys = _keys_of(changed)
                self.generation += 1
        except ConfigurationError:
            return

    @property
    def _signer(self) -> jwt.PyJWK:
        return next(iter(self._keys.values()))

    def issue(
        self, principal: Principal, *, at: datetime | None = None, not_before: datetime | None = None
    ) -> str:
        """A token for ``principal``, good for :attr:`lifetime`.

        Args:
            principal: Who it speaks for.
            at: When it proved itself, by the database's clock, which withdraws tokens; None: now, by ours.
            not_before: Since when its tokens count (``users.tokens_valid_from``): ``iat`` has whole seconds,
                but a token of the same second must not look older than that, nor newer.
        """
        self.reload()
        now = int(time.time())
        issued_at = int(at.timestamp()) if at is not None else now
        valid_from = not_before.timestamp() if not_before is not None else 0
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": str(principal.id),
            "email": principal.email,
            "role": str(principal.role),
            "iat": min(max(issued_at, valid_from), now + _LEEWAY_SECONDS),
            "nbf": now,
            "exp": now + int(self.lifetime.total_seconds()),
            "jti": str(new_id()),
            "typ": "access",
        }
        key = self._signer
        return jwt.encode(claims, key.key, algorithm=key.algorithm_name, headers={"kid": key.key_id})

    def verify(self, token: str, *, may_have_expired: bool = False) -> Verified:
        """What ``token`` says, if it is good.

        Args:
            token: A JWT.
            may_have_expired: One that was good once tells who it spoke for, and lets nobody in.

        Raises:
            Unauthorized: Malformed, unknown key, bad signature, expired, or not an access token.
        """
        if len(token) > MAX_TOKEN_LENGTH:
            raise Unauthorized("The token is too long")
        try:
            key = self._key(_header_of(token))
            claims: Mapping[str, Any] = jwt.decode(
                token,
                _verifying(key),
                algorithms=[key.algorithm_name],
                issuer=ISSUER,
                audience=AUDIENCE,
                options={"require": _REQUIRED, "verify_exp": not may_have_expired},
                leeway=_LEEWAY_SECONDS,
            )
            if any(type(claims[name]) not in (int, float) for name in _TIMES):
                raise Unauthorized("The token is not valid")  # PyJWT also takes numbers as text
            if claims.get("typ") != "access":
                raise Unauthorized("This is not an access token")
            principal = Principal(UUID(claims["sub"]), str(claims["email"]), Role(claims["role"]))
            return Verified(principal, float(claims["exp"]), float(claims["iat"]))
        except jwt.ExpiredSignatureError as error:
            raise Unauthorized("The token has expired; log in again") from error
        except (
            jwt.PyJWTError,
            KeyError,
            ValueError,
            TypeError,
            AttributeError,
            OverflowError,
            RecursionError,
        ) as error:
            raise Unauthorized("The token is not valid") from error

    def public_jwk_set(self) -> JwkSet:
        """The public halves (RFC 7517); symmetric keys are left out."""
        self.reload()
        published = []
        for kid, key in self._keys.items():
            if key.algorithm_name == "HS256":
                continue
            public = key.Algorithm.to_jwk(_verifying(key), as_dict=True)
            published.append({**public, "kid": kid, "alg": key.algorithm_name, "use": "sig"})
        return {"keys": published}

    def _key(self, header: Mapping[str, Any]) -> jwt.PyJWK:
        kid = header["kid"]
        if kid not in self._keys:  # perhaps a neighbour has rotated the keys a moment ago
            self.reload()
        return self._keys[kid]


def _verifying(key: jwt.PyJWK) -> Any:
    """The half that verifies: the public one of a pair."""
    return key.key.public_key() if hasattr(key.key, "public_key") else key.key


def _header_of(token: str) -> Mapping[str, Any]:
    """The header, looked at before anything is believed.

    Raises:
        ValueError: It is over its size, no JSON object, or says more than which key it is.
    """
    encoded = token.partition(".")[0]
    if len(encoded) > MAX_HEADER_LENGTH:
        raise ValueError("the header is too large")
    try:
        header = json.loads(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
    except (binascii.Error, UnicodeError) as error:
        raise ValueError("the header is not base64") from error
    if not isinstance(header, dict) or not set(header) <= _HEADER_MEMBERS:
        raise ValueError("the header holds what is not followed")
    return header


def _keys_of(jwk_set: JwkSet) -> dict[str, jwt.PyJWK]:
    keys: dict[str, jwt.PyJWK] = {}
    for jwk in jwk_set["keys"]:
        kid = jwk["kid"]
        if not isinstance(kid, str) or not kid or kid in keys:
            raise ConfigurationError("WAYBILL_JWT_KEYS: each key needs a kid (text) of its own")
        algorithm = _ALGORITHMS.get(jwk["kty"]) if isinstance(jwk["kty"], str) else None
        if algorithm is None or jwk.get("alg", algorithm) != algorithm:
            raise ConfigurationError(
                f"WAYBILL_JWT_KEYS: key {kid} is not one of EdDSA (OKP), HS256 (oct) and RS256 (RSA)"
            )
        try:
            keys[kid] = jwt.PyJWK(jwk, algorithm=algorithm)
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise ConfigurationError(f"WAYBILL_JWT_KEYS: key {kid} is spoiled ({error})") from error
        _check_strength(kid, keys[kid])
    if not {"d", "k"} & set(jwk_set["keys"][0]):
        raise ConfigurationError("WAYBILL_JWT_KEYS: the first key signs, so it must be a private one")
    return keys


def _check_strength(kid: str, key: jwt.PyJWK) -> None:
    if key.algorithm_name == "HS256" and len(key.key) < _LEAST_HS256_BYTES:
        raise ConfigurationError(f"WAYBILL_JWT_KEYS: key {kid} needs at least {_LEAST_HS256_BYTES} bytes")
    if key.algorithm_name == "RS256" and key.key.key_size < _LEAST_RS256_BITS:
        raise ConfigurationError(f"WAYBILL_JWT_KEYS: key {kid} needs at least {_LEAST_RS256_BITS} bits")
    if key.algorithm_name == "EdDSA" and not isinstance(key.key, Ed25519PrivateKey | Ed25519PublicKey):
        raise ConfigurationError(f"WAYBILL_JWT_KEYS: key {kid} must be of the curve Ed25519")
