"""Cursors: where the next page of a list begins, opaque to its reader and signed. No queries."""

import base64
import binascii
import hmac
import json
from collections.abc import Sequence
from hashlib import blake2b

from models.errors import Invalid

_DIGEST_BYTES = 16
MAX_CURSOR_LENGTH = 4096


class Cursors:
    """Writes and reads cursors.

    A cursor holds for one question only: what was asked, and by whom, is signed with it.

    Args:
        key: Secret, the same in every process.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def write(self, question: Sequence[str | None], position: Sequence[str]) -> str:
        """The cursor of the page after ``position`` in the answer to ``question``."""
        body = json.dumps(list(position), ensure_ascii=False, separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(self._digest(question, body) + body).decode().rstrip("=")

    def read(self, question: Sequence[str | None], cursor: str, length: int) -> list[str]:
        """The position, of ``length`` texts, that ``cursor`` was written for.

        Raises:
            Invalid: It is not ours, or belongs to another question.
        """
        try:
            if len(cursor) > MAX_CURSOR_LENGTH or not cursor.isascii():
                raise ValueError("no cursor of ours")
            raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
            digest, body = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
            if not hmac.compare_digest(digest, self._digest(question, body)):
                raise ValueError("no cursor of ours")
            position = json.loads(body)
        except (ValueError, binascii.Error) as error:
            raise Invalid("The cursor is not one of this list: begin without it") from error
        if len(position) != length:
            raise Invalid("The cursor is not one of this list: begin without it")
        return [str(part) for part in position]

    def _digest(self, question: Sequence[str | None], body: bytes) -> bytes:
        asked = json.dumps(list(question)).encode()
        return blake2b(
            len(asked).to_bytes(8, "big") + asked + body, key=self._key, digest_size=_DIGEST_BYTES
        ).digest()
