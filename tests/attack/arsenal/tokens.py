"""Access tokens that are forged, stale, foreign or no tokens; and credentials that are no Bearer."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.attack.attack import Attack, http, statuses
from tests.attack.reply import Reply
from tests.attack.target import ENTITIES, Target

Forge = Callable[[Target], str]


def _claims(target: Target, **changes: Any) -> dict[str, Any]:
    claims = jwt.decode(target.tokens["admin"], options={"verify_signature": False})
    return {name: value for name, value in {**claims, **changes}.items() if value is not None}


def _genuine(target: Target, header: dict[str, Any] | None = None, **changes: Any) -> str:
    """Signed with the platform's own key: only its content is wrong."""
    key = target.container.tokens._signer
    return jwt.encode(
        _claims(target, **changes), key.key, algorithm="EdDSA", headers={"kid": key.key_id, **(header or {})}
    )


def _kid(target: Target) -> str:
    return str(target.container.tokens._signer.key_id)


def _unsigned(target: Target, algorithm: str) -> str:
    return f"{_part({'alg': algorithm, 'kid': _kid(target)})}.{_part(_claims(target))}."


def _tampered(target: Target) -> str:
    header, _, signature = target.tokens["user"].split(".")
    return f"{header}.{_part(_claims(target))}.{signature}"


def _hmac_with_the_public_key(target: Target) -> str:
    """The classic confusion: the published key taken for a shared secret."""
    published = target.container.tokens.public_jwk_set()["keys"][0]
    head = f"{_part({'alg': 'HS256', 'kid': published['kid']})}.{_part(_claims(target))}"
    secret = base64.urlsafe_b64decode(published["x"] + "=")
    return f"{head}.{_text(hmac.new(secret, head.encode(), hashlib.sha256).digest())}"


def _with_a_key_of_its_own(target: Target) -> str:
    """A token that brings along the key to check it with."""
    own = Ed25519PrivateKey.generate()
    jwk = json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(own.public_key()))
    return jwt.encode(_claims(target), own, algorithm="EdDSA", headers={"kid": _kid(target), "jwk": jwk})


def _other_key(target: Target) -> str:
    key = Ed25519PrivateKey.generate()
    return jwt.encode(_claims(target), key, algorithm="EdDSA", headers={"kid": _kid(target)})


def _rsa(target: Target) -> str:
    key = rsa.generate_private_key(65537, 2048)
    return jwt.encode(_claims(target), key, algorithm="RS256", headers={"kid": _kid(target)})


def _url(target: Target) -> str:
    return f"http://127.0.0.1:{target.port}/.well-known/jwks.json"


FORGED: dict[str, Forge] = {
    "content exchanged": _tampered,
    "signature cut off": lambda target: target.tokens["user"].rpartition(".")[0] + ".",
    "signature shortened": lambda target: target.tokens["user"][:-4],
    "alg none": lambda target: _unsigned(target, "none"),
    "alg None": lambda target: _unsigned(target, "None"),
    "alg EdDSA, unsigned": lambda target: _unsigned(target, "EdDSA"),
    "HMAC with the public key": _hmac_with_the_public_key,
    "its own key along (jwk)": _with_a_key_of_its_own,
    "another key": _other_key,
    "RS256 by another key": _rsa,
    "jku": lambda target: _genuine(target, {"jku": _url(target)}),
    "x5u": lambda target: _genuine(target, {"x5u": _url(target)}),
    "crit": lambda target: _genuine(target, {"crit": ["b64"], "b64": False}),
    "kid unknown": lambda target: _genuine(target, {"kid": "unknown"}),
    "kid a path": lambda target: _genuine(target, {"kid": "../../../../dev/null"}),
    "kid SQL": lambda target: _genuine(target, {"kid": "x' UNION SELECT 'key'--"}),
    "kid a command": lambda target: _genuine(target, {"kid": "|/bin/true"}),
    "expired": lambda target: _genuine(target, exp=int(time.time()) - 60),
    "expiry a text": lambda target: _genuine(target, exp="9999999999"),
    "not yet": lambda target: _genuine(target, nbf=int(time.time()) + 600),
    "issued in the future": lambda target: _genuine(target, iat=int(time.time()) + 600),
    "foreign issuer": lambda target: _genuine(target, iss="https://evil.example"),
    "foreign audience": lambda target: _genuine(target, aud="other"),
    "refresh for access": lambda target: _genuine(target, typ="refresh"),
    "unknown role": lambda target: _genuine(target, role="root"),
    "subject no id": lambda target: _genuine(target, sub="1"),
    "subject nobody": lambda target: _genuine(target, sub=str(uuid4())),
    "too long": lambda target: _genuine(target, email="x" * 5000),
    "empty": lambda target: "",
    "one part": lambda target: "abc",
    "dots": lambda target: "..",
    "five parts": lambda target: "a.b.c.d.e",
    "parts of bad base64": lambda target: "!!!.???.***",
    "header an array": lambda target: f"{_part([])}.{_part({})}.",
    "header a depth bomb": lambda target: f"{_text(b'[' * 2000)}.{_part({})}.",
    "bytes": lambda target: "ÿþý",
    **{
        f"no {claim}": lambda target, claim=claim: _genuine(target, **{claim: None})
        for claim in ("iss", "aud", "exp", "iat", "nbf", "jti", "sub", "role")
    },
}
_SCHEMES = ("Basic dXNlcjpwYXNz", "Bearer", "Bearer ", "Token x", "bearerx", "Digest a=b", "Negotiate x", "")


def attacks() -> Iterator[Attack]:
    """Each token at a read, a write and a stream of jobs; each other scheme at a read."""
    for name, forge in FORGED.items():
        yield Attack("tokens", name, _sent(forge, "GET", ENTITIES), statuses(401))
        yield Attack("tokens", f"write: {name}", _sent(forge, "POST", ENTITIES), statuses(401))
        yield Attack(
            "tokens", f"events: {name}", _sent(forge, "GET", "/api/v1/jobs/{job}/events"), statuses(401)
        )
    for scheme in _SCHEMES:
        headers = {"Authorization": scheme}
        yield http("tokens", f"scheme {scheme!r}", "GET", ENTITIES, 401, who=None, headers=headers)
    yield http("tokens", "none at all", "GET", ENTITIES, 401, who=None)
    yield Attack("tokens", "two of them", _two, statuses((400, 401)))
    yield Attack("tokens", "in the query", _in_query, statuses(401))
    yield Attack("tokens", "in a cookie", _in_cookie, statuses(401))


def _sent(forge: Forge, method: str, path: str) -> Callable[[Target], Reply]:
    def send(target: Target) -> Reply:
        headers = {"Authorization": f"Bearer {forge(target)}"}
        return target.request(
            method, path, who=None, headers=headers, body=b'{"name":"a"}' if method == "POST" else None
        )

    return send


def _two(target: Target) -> Reply:
    both = [("Authorization", f"Bearer {target.tokens[who]}") for who in ("guest", "admin")]
    return target.request("GET", ENTITIES, who=None, headers=both)


def _in_query(target: Target) -> Reply:
    return target.request("GET", f"{ENTITIES}?access_token={target.tokens['admin']}", who=None)


def _in_cookie(target: Target) -> Reply:
    cookie = {"Cookie": f"Authorization=Bearer {target.tokens['admin']}"}
    return target.request("GET", ENTITIES, who=None, headers=cookie)


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _part(document: Any) -> str:
    return _text(json.dumps(document).encode())
