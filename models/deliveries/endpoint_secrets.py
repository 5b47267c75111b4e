"""The secrets that sign callbacks, as Standard Webhooks spells them: made, checked, sealed. Signs nothing."""

import base64
import binascii
import secrets
from collections.abc import Callable
from uuid import UUID

from models.errors import Invalid
from models.identity.sealing import Sealer

PREFIX = "whsec_"
MIN_BYTES, MAX_BYTES = 24, 64
_NEW_BYTES = 32


def new_secret(random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> str:
    """A fresh secret: ``whsec_`` and 32 random bytes in base64."""
    return PREFIX + base64.b64encode(random_bytes(_NEW_BYTES)).decode()


def parse_secret(secret: str) -> bytes:
    """The key inside ``whsec_<base64>``: 24 to 64 bytes, standard alphabet, padded (Standard Webhooks 1.0).

    Raises:
        Invalid: It is spelled any other way. The message does not repeat it.
    """
    encoded = secret.removeprefix(PREFIX)
    try:
        key = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    # Encoded again it must be the same: base64 lets spare bits differ, and one key should have one spelling.
    is_canonical = secret == PREFIX + base64.b64encode(key).decode()
    if not is_canonical or not MIN_BYTES <= len(key) <= MAX_BYTES:
        raise Invalid(f"A secret is {PREFIX} and {MIN_BYTES} to {MAX_BYTES} bytes in base64")
    return key


class EndpointSecrets:
    """Secrets as they are kept: sealed for their endpoint, so that one copied into another row is worthless.

    Rows from before secrets were sealed hold them as they are; they open too.

    Args:
        sealer: Seals and opens.
    """

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer

    def seal(self, endpoint_id: UUID, secret: str) -> str:
        """What is kept of ``secret``."""
        return self._sealer.seal(secret, _purpose(endpoint_id))

    def open(self, endpoint_id: UUID, kept: str) -> str:
        """The secret.

        Raises:
            Unsealable: It was sealed for another endpoint, or under a key that is gone.
        """
        return kept if kept.startswith(PREFIX) else self._sealer.open(kept, _purpose(endpoint_id))


def _purpose(endpoint_id: UUID) -> str:
    return f"callback_endpoints.secret/{endpoint_id}"
