"""Secrets at rest: sealed by AES-256-GCM under keys that can be rotated. Knows no tables.

A sealed secret is text: ``v1.<key id>.<base64url of nonce and ciphertext>``. The purpose it was sealed
for (which column of which row) is authenticated with it, so a sealed text copied into another row does
not open there.
"""

import base64
import binascii
import os
import re
from collections.abc import Callable, Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from models.errors import ConfigurationError, Permanent

_VERSION = "v1"
_NONCE_BYTES = 12
KEY_BYTES = 32
_KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,32}")


class Unsealable(Permanent):
    """The text was not sealed by us, for another purpose, or under a key that we no longer have."""


class Sealer:
    """Seals with the first key, opens with any.

    Args:
        keys: 32-byte keys by id; the first seals.
        random_bytes: Source of nonces.
    """

    def __init__(
        self, keys: Mapping[str, bytes], *, random_bytes: Callable[[int], bytes] = os.urandom
    ) -> None:
        self._ciphers = {key_id: AESGCM(key) for key_id, key in keys.items()}
        self._present = next(iter(keys))
        self._random_bytes = random_bytes

    def seal(self, secret: str, purpose: str) -> str:
        """Text that only :meth:`open` with the same ``purpose`` turns back into ``secret``."""
        nonce = self._random_bytes(_NONCE_BYTES)
        sealed = self._ciphers[self._present].encrypt(nonce, secret.encode(), purpose.encode())
        return f"{_VERSION}.{self._present}.{base64.urlsafe_b64encode(nonce + sealed).decode()}"

    def open(self, sealed: str, purpose: str) -> str:
        """The secret.

        Raises:
            Unsealable: Not sealed by us for ``purpose``, or its key is gone. The message holds no secret.
        """
        version, _, rest = sealed.partition(".")
        key_id, _, text = rest.partition(".")
        cipher = self._ciphers.get(key_id)
        if version != _VERSION or cipher is None:
            raise Unsealable(f"a secret is sealed under a key not in WAYBILL_SEALING_KEYS ({purpose})")
        try:
            raw = base64.b64decode(text, altchars=b"-_", validate=True)
            return cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], purpose.encode()).decode()
        except (InvalidTag, ValueError, binascii.Error) as error:
            raise Unsealable(f"a sealed secret was changed, or belongs elsewhere ({purpose})") from error

    @staticmethod
    def is_sealed(text: str) -> bool:
        """Whether it looks like something sealed, under whichever key."""
        return text.startswith(f"{_VERSION}.")

    def is_current(self, sealed: str) -> bool:
        """Whether it is sealed under the key that seals now; if not, rotation seals it anew."""
        return sealed.startswith(f"{_VERSION}.{self._present}.")


def sealing_keys(text: str) -> dict[str, bytes]:
    """Keys as the setting has them: ``id:base64`` parts, comma-separated, 32 bytes each.

    Raises:
        ConfigurationError: It is spelled any other way. The message repeats no key.
    """
    keys: dict[str, bytes] = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        key_id, _, encoded = part.partition(":")
        try:
            key = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if not _KEY_ID.fullmatch(key_id) or len(key) != KEY_BYTES or key_id in keys:
            raise ConfigurationError(
                "WAYBILL_SEALING_KEYS: each key must be id:base64 of 32 bytes, "
                "as from: openssl rand -base64 32"
            )
        keys[key_id] = key
    return keys
