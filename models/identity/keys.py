"""Key material: the JWK set that signs tokens, and the secret that everything keyed derives from.

Both are kept in the data directory (mode 0600) unless given by setting, so that they survive a restart.
"""

import json
import os
import secrets
from hashlib import blake2b
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm

from models.errors import ConfigurationError
from models.settings import Settings

JwkSet = dict[str, Any]


def load_jwk_set(settings: Settings) -> JwkSet:
    """The signing keys: ``WAYBILL_JWT_KEYS``, else those of the data directory, made on first use.

    Raises:
        ConfigurationError: The setting is not a JWK set, or the file cannot be read.
    """
    if settings.jwt_keys is not None:
        text = settings.jwt_keys.get_secret_value()
    else:
        text = _kept(settings.data_dir / "keys" / "jwt.json", _new_jwk_set)
    try:
        jwk_set: JwkSet = json.loads(text)
        if not all({"kty", "kid"} <= set(key) for key in jwk_set["keys"]) or not jwk_set["keys"]:
            raise ValueError("each key needs kty and kid")
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            'WAYBILL_JWT_KEYS must be a JWK set: {"keys": [{"kty": …, "kid": …}]}'
        ) from error
    return jwk_set


def derived_key(settings: Settings, purpose: str) -> bytes:
    """32 bytes for ``purpose`` alone, the same after every restart.

    Raises:
        ConfigurationError: The file cannot be read, or is spoiled.
    """
    path = settings.data_dir / "keys" / "master.hex"
    try:
        master = bytes.fromhex(_kept(path, lambda: secrets.token_hex(32)))
        return blake2b(purpose.encode(), key=master, digest_size=32).digest()
    except ValueError as error:
        raise ConfigurationError(f"WAYBILL_DATA_DIR: {path} is spoiled: restore it from a backup") from error


def _new_jwk_set() -> str:
    jwk = json.loads(OKPAlgorithm.to_jwk(Ed25519PrivateKey.generate()))
    key = {**jwk, "kid": secrets.token_hex(8), "alg": "EdDSA", "use": "sig"}
    return json.dumps({"keys": [key]})


def _kept(path: Path, make: Any) -> str:
    """The file's text; made, whole and once, by whichever process comes first."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
            with open(os.open(draft, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w") as file:
                file.write(make())
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(draft, path)
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        return path.read_text()
    except OSError as error:
        raise ConfigurationError(
            f"WAYBILL_DATA_DIR: cannot keep keys in {path.parent} ({error.strerror}): check its owner"
        ) from error
