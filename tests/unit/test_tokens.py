"""Access tokens: ours are taken, everybody else's are refused."""

import base64
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm, RSAAlgorithm

from models.container import Container
from models.errors import ConfigurationError, Unauthorized
from models.identity.keys import load_jwk_set, rotate_jwk_set
from models.identity.principals import Principal, Role
from models.identity.tokens import Tokens
from models.ids import new_id
from models.settings import Settings

ADA = Principal(new_id(), "ada@example.org", Role.USER)


def jwk(kid: str, key: Ed25519PrivateKey) -> dict[str, Any]:
    return {**json.loads(OKPAlgorithm.to_jwk(key)), "kid": kid}


KEY, OLD, STRANGE = (Ed25519PrivateKey.generate() for _ in range(3))
TOKENS = Tokens({"keys": [jwk("now", KEY), jwk("old", OLD)]})
CLAIMS = jwt.decode(TOKENS.issue(ADA), options={"verify_signature": False})


def signed(
    key: Any = KEY, algorithm: str = "EdDSA", headers: dict[str, Any] | None = None, **claims: Any
) -> str:
    present = {name: value for name, value in (CLAIMS | claims).items() if value is not ...}
    return jwt.encode(
        present, key, algorithm=algorithm, headers={"kid": "now"} if headers is None else headers
    )


def part(document: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).decode().rstrip("=")


PUBLIC = KEY.public_key()
PUBLIC_RAW = PUBLIC.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
PUBLIC_X = jwk("now", KEY)["x"].encode()
NOW = int(time.time())
A_DAY = 86_400  # these are made once, and a whole run of the tests takes minutes

HOSTILE = {
    "nothing": "",
    "no token": "hello",
    "two dots": "..",
    "not base64": "a.b.c",
    "algorithm none": f"{part({'alg': 'none', 'kid': 'now'})}.{part(CLAIMS)}.",
    "algorithm none in capitals": f"{part({'alg': 'NONE', 'kid': 'now'})}.{part(CLAIMS)}.",
    "HS256 with the public key": signed(PUBLIC_RAW, "HS256"),
    "HS256 with the public key's text": signed(PUBLIC_X, "HS256"),
    "signed by a stranger": signed(STRANGE),
    "signed by a stranger, its key enclosed": signed(
        STRANGE, headers={"kid": "now", "jwk": jwk("now", STRANGE)}
    ),
    "another of our keys than it says": signed(OLD),
    "its key by address": signed(headers={"kid": "now", "jku": "https://evil.example/keys"}),
    "its certificate by address": signed(headers={"kid": "now", "x5u": "https://evil.example/cert"}),
    "its certificate enclosed": signed(headers={"kid": "now", "x5c": ["AAAA"]}),
    "critical extension": signed(headers={"kid": "now", "crit": ["exp"], "exp": 1}),
    "unencoded payload": signed(headers={"kid": "now", "b64": False, "crit": ["b64"]}),
    "header too large": signed(headers={"kid": "now", "typ": "x" * 600}),
    "header nested too deeply": f"{part([[[]]] * 50).replace('=', '')}.{part(CLAIMS)}.AAAA",
    "kid that is a number": f"{part({'alg': 'EdDSA', 'kid': 5})}.{part(CLAIMS)}.AAAA",
    "algorithm of another key": f"{part({'alg': 'RS256', 'kid': 'now'})}.{part(CLAIMS)}.AAAA",
    "our refresh token": "wbr_" + "A" * 64,
    "unknown kid": signed(headers={"kid": "other"}),
    "no kid": signed(headers={}),
    "expired": signed(exp=NOW - 60),
    "not yet valid": signed(nbf=NOW + A_DAY),
    "issued in the future": signed(iat=NOW + A_DAY),
    "other audience": signed(aud="elsewhere"),
    "several audiences, none of them ours": signed(aud=["a", "b"]),
    "other issuer": signed(iss="elsewhere"),
    "refresh token": signed(typ="refresh"),
    "no type": signed(typ=...),
    "subject that is no id": signed(sub="admin"),
    "role that does not exist": signed(role="root"),
    "no role": signed(role=...),
    "expiry as text": signed(exp="tomorrow"),
    "oversize": signed(padding="x" * 5000),
    "lone surrogate": "\ud800.\ud800.\ud800",
    "header that is no object": f"{part([])}.{part(CLAIMS)}.AAAA",
    "kid that is a list": f"{part({'alg': 'EdDSA', 'kid': ['now']})}.{part(CLAIMS)}.AAAA",
    **{
        f"without {claim}": signed(**{claim: ...})
        for claim in ("iss", "aud", "exp", "iat", "nbf", "jti", "sub")
    },
}


def oct_key(kid: str, size: int) -> dict[str, Any]:
    return {"kty": "oct", "kid": kid, "k": base64.urlsafe_b64encode(b"k" * size).decode().rstrip("=")}


def rsa_key(kid: str, bits: int) -> dict[str, Any]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=bits)
    return {**json.loads(RSAAlgorithm.to_jwk(key)), "kid": kid}


@pytest.mark.parametrize("key", [oct_key("k", 32), rsa_key("k", 2048)], ids=["HS256", "RS256"])
def test_other_algorithms_sign_and_verify_by_setting(key: dict[str, Any]) -> None:
    tokens = Tokens({"keys": [key, jwk("now", KEY)]})
    token = tokens.issue(ADA)
    assert jwt.get_unverified_header(token)["alg"] == {"oct": "HS256", "RSA": "RS256"}[key["kty"]]
    assert tokens.verify(token).principal == ADA
    assert tokens.verify(TOKENS.issue(ADA)).principal == ADA


@pytest.mark.parametrize(
    "keys",
    [
        [oct_key("k", 31)],
        [rsa_key("k", 1024)],
        [jwk("same", KEY), jwk("same", OLD)],
        [jwk("now", KEY) | {"alg": "HS256"}],
        [jwk("now", KEY) | {"kid": 5}],
        [{**json.loads(OKPAlgorithm.to_jwk(Ed448PrivateKey.generate())), "kid": "448"}],
    ],
    ids=["short HS256", "short RS256", "same kid", "another algorithm", "kid no text", "another curve"],
)
def test_weak_or_ambiguous_keys_are_refused(keys: list[dict[str, Any]]) -> None:
    with pytest.raises(ConfigurationError, match=r"^WAYBILL_JWT_KEYS"):
        Tokens({"keys": keys})


def test_key_that_a_neighbour_rotated_in_is_taken_up_at_once(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, data_dir=tmp_path)
    running = Container(settings, role="test").tokens
    before = running.issue(ADA)
    rotate_jwk_set(settings)
    after = Tokens(load_jwk_set(settings)).issue(ADA)
    assert jwt.get_unverified_header(after)["kid"] != jwt.get_unverified_header(before)["kid"]
    assert running.verify(after).principal == ADA
    assert running.verify(before).principal == ADA
    assert jwt.get_unverified_header(running.issue(ADA))["kid"] == jwt.get_unverified_header(after)["kid"]
    assert len(running.public_jwk_set()["keys"]) == 2
    assert running.generation == 1


def test_token_of_the_second_in_which_tokens_were_withdrawn_looks_newer() -> None:
    withdrawn = datetime.now(UTC)
    assert TOKENS.verify(TOKENS.issue(ADA, not_before=withdrawn)).issued_at >= withdrawn.timestamp()


@pytest.mark.parametrize("token", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_token_is_refused(token: str) -> None:
    with pytest.raises(Unauthorized):
        TOKENS.verify(token)


def test_changed_payload_is_refused() -> None:
    head, _, signature = TOKENS.issue(ADA).split(".")
    with pytest.raises(Unauthorized):
        TOKENS.verify(f"{head}.{part(CLAIMS | {'role': 'admin'})}.{signature}")


def test_issued_token_speaks_for_its_principal_until_it_expires() -> None:
    principal, expires_at, _ = Tokens({"keys": [jwk("now", KEY)]}, lifetime=timedelta(minutes=1)).verify(
        Tokens({"keys": [jwk("now", KEY)]}, lifetime=timedelta(minutes=1)).issue(ADA)
    )
    assert principal == ADA
    assert 50 < expires_at - time.time() <= 60


def test_key_that_was_rotated_out_still_verifies() -> None:
    token = Tokens({"keys": [jwk("old", OLD)]}).issue(ADA)
    assert TOKENS.verify(token)[0] == ADA
    assert jwt.get_unverified_header(TOKENS.issue(ADA))["kid"] == "now"


def test_published_keys_hold_no_private_part_and_no_symmetric_key() -> None:
    secret = base64.urlsafe_b64encode(b"k" * 32).decode().rstrip("=")
    published = Tokens(
        {"keys": [jwk("now", KEY), {"kty": "oct", "k": secret, "kid": "shared"}]}
    ).public_jwk_set()
    assert published == {
        "keys": [
            {
                "kty": "OKP",
                "crv": "Ed25519",
                "x": jwk("now", KEY)["x"],
                "kid": "now",
                "alg": "EdDSA",
                "use": "sig",
            }
        ]
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"keys": []}',
        '{"keys": [5]}',
        '{"keys": [{"kty": "OKP"}]}',
        '{"keys": [{"kty": "EC", "kid": "a"}]}',
        '{"keys": [{"kty": "OKP", "kid": "a", "crv": "Ed25519", "x": "AAAA", "d": "!!"}]}',
        '{"keys": [{"kty": "OKP", "kid": "a"}]}',
        json.dumps({"keys": [{name: value for name, value in jwk("a", KEY).items() if name != "d"}]}),
    ],
)
def test_setting_that_is_no_set_of_private_keys_is_one_line(text: str, tmp_path: Path) -> None:
    settings = Settings(_env_file=None, jwt_keys=text, data_dir=tmp_path)
    with pytest.raises(ConfigurationError, match=r"^WAYBILL_JWT_KEYS") as caught:
        Tokens(load_jwk_set(settings))
    assert "\n" not in str(caught.value)
