"""Key material: the JWK set that signs tokens, and the secret that everything keyed derives from.

Both are kept in the data directory (mode 0600) unless given by setting, so that they survive a restart.
"""

import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable
from datetime import timedelta
from hashlib import blake2b
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm

from models.errors import ConfigurationError
from models.settings import Settings

JwkSet = dict[str, Any]

KEPT_AFTER_ROTATION = timedelta(days=1)
"""How long a key that no longer signs still verifies; far longer than any access token lives."""

_CREATED = "created"


def load_jwk_set(settings: Settings) -> JwkSet:
    """The signing keys: ``WAYBILL_JWT_KEYS``, else those of the data directory, made on first use.

    Raises:
        ConfigurationError: The setting is not a JWK set, or the file cannot be read.
    """
    if settings.jwt_keys is not None:
        return _parsed(settings.jwt_keys.get_secret_value())
    return _parsed(_kept(_jwt_file(settings), _new_jwk_set))


def jwk_set_watch(settings: Settings) -> Callable[[], JwkSet | None]:
    """Tells, whenever it is called, the data directory's signing keys if they were changed since.

    It costs one ``stat``. Keys given by setting never change while a process runs.
    """
    if settings.jwt_keys is not None:
        return lambda: None
    path = _jwt_file(settings)
    _kept(path, _new_jwk_set)
    seen = _mark(path)

    def changed() -> JwkSet | None:
        nonlocal seen
        mark = _mark(path)
        if mark is None or mark == seen:
            return None
        seen = mark
        return load_jwk_set(settings)

    return changed


def rotate_jwk_set(settings: Settings, *, now: Callable[[], float] = time.time) -> JwkSet:
    """Put a new signing key first. The others still verify; those long replaced are dropped.

    Raises:
        ConfigurationError: The keys are given by setting, or the file cannot be written.
    """
    if settings.jwt_keys is not None:
        raise ConfigurationError(
            "WAYBILL_JWT_KEYS: keys given by setting are rotated there: put a new one first, keep the others"
        )
    path = _jwt_file(settings)
    present = load_jwk_set(settings)
    try:
        with open(os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR, 0o600)) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            present = load_jwk_set(settings)
            oldest = now() - KEPT_AFTER_ROTATION.total_seconds()
            [fresh] = json.loads(_new_jwk_set())["keys"]
            keys = [fresh | {_CREATED: int(now())}, *present["keys"]]
            # A key was replaced when the one before it was made.
            kept = [
                key for key, newer in zip(keys[1:], keys, strict=False) if newer.get(_CREATED, 0) >= oldest
            ]
            rotated = {"keys": [keys[0], *kept]}
            draft = _draft(path, json.dumps(rotated))
            draft.replace(path)
    except OSError as error:
        raise _unusable(path, error) from error
    return rotated


def _parsed(text: str) -> JwkSet:
    try:
        jwk_set: JwkSet = json.loads(text)
        if not all({"kty", "kid"} <= set(key) for key in jwk_set["keys"]) or not jwk_set["keys"]:
            raise ValueError("each key needs kty and kid")
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            'WAYBILL_JWT_KEYS must be a JWK set: {"keys": [{"kty": …, "kid": …}]}'
        ) from error
    return jwk_set


def _jwt_file(settings: Settings) -> Path:
    return settings.data_dir / "keys" / "jwt.json"


def _mark(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


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
            draft = _draft(path, make())
            try:
                os.link(draft, path)
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        return path.read_text()
    except OSError as error:
        raise _unusable(path, error) from error


def _draft(path: Path, text: str) -> Path:
    """The text beside ``path``, private and safe on the disk."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    with open(os.open(draft, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return draft


def _unusable(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"WAYBILL_DATA_DIR: cannot keep keys in {path.parent} ({error.strerror}): check its owner"
    )
