"""Second factors: time-based codes (RFC 6238) and recovery codes. Knows no passwords, no HTTP."""

import base64
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from uuid import UUID

import pyotp
from pyotp.exceptions import OTPVerificationError
from sqlalchemy import Connection, text

from models.errors import Conflict, NotFound, Unauthorized
from models.identity.principals import Principal
from models.identity.sealing import Sealer

ISSUER = "Waybill"
RECOVERY_CODES = 10
_RECOVERY_BYTES = 10
_STEPS_AROUND = 1


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What an authenticator needs; shown once.

    Attributes:
        secret: In base32.
        otpauth_uri: The same for a QR code.
        recovery_codes: Each stands in for one code, once.
    """

    secret: str
    otpauth_uri: str
    recovery_codes: tuple[str, ...]


class SecondFactors:
    """Keeps second factors. Works inside the caller's transaction.

    Args:
        sealer: Seals the secrets.
        now: POSIX seconds.
    """

    def __init__(self, sealer: Sealer, *, now: Callable[[], float] = time.time) -> None:
        self._sealer = sealer
        self._now = now

    def enrol(self, connection: Connection, principal: Principal) -> Enrolment:
        """Prepare a second factor; it is asked for once it is confirmed. A prepared one is replaced.

        Raises:
            Conflict: There is a confirmed one: whoever holds an access token must not replace it.
        """
        secret = pyotp.random_base32()
        sealed = self._sealer.seal(secret, purpose_of(principal.id))
        if connection.execute(_ENROL, {"id": principal.id, "secret": sealed}).rowcount != 1:
            raise Conflict("There is a second factor already; an operator can take it off")
        codes = tuple(_recovery_code() for _ in range(RECOVERY_CODES))
        connection.execute(_FORGET_CODES, {"id": principal.id})
        digests = [{"id": principal.id, "digest": _digest(principal.id, code)} for code in codes]
        connection.execute(_KEEP_CODE, digests)
        uri = pyotp.TOTP(secret).provisioning_uri(name=principal.email, issuer_name=ISSUER)
        return Enrolment(secret, uri, codes)

    def confirm(self, connection: Connection, user_id: UUID, otp: str) -> None:
        """Turn the prepared second factor on.

        Raises:
            NotFound: None was prepared.
            Conflict: It is on already.
            Unauthorized: The code is wrong.
        """
        row = connection.execute(_FIND, {"id": user_id}).one_or_none()
        if row is None:
            raise NotFound("Enrol first: POST /auth/mfa/enroll")
        if row.is_confirmed:
            raise Conflict("The second factor is on already")
        step = self._step(row.secret, user_id, otp)
        parameters = {"id": user_id, "step": step, "secret": row.secret}
        if step is None or connection.execute(_CONFIRM, parameters).rowcount != 1:
            raise Unauthorized("The code is wrong")

    def is_on(self, connection: Connection, user_id: UUID) -> bool:
        """Whether logging in takes a second factor."""
        row = connection.execute(_FIND, {"id": user_id}).one_or_none()
        return row is not None and row.is_confirmed

    def accepts(self, connection: Connection, user_id: UUID, otp: str) -> bool:
        """Whether ``otp`` is a code of now or a recovery code; either is good once.

        Two that come with the same code at once: the row decides, one of them is told no.
        """
        row = connection.execute(_FIND, {"id": user_id}).one_or_none()
        if row is None or not row.is_confirmed:
            return False
        step = self._step(row.secret, user_id, otp)
        if step is not None:
            return connection.execute(_SPEND_STEP, {"id": user_id, "step": step}).rowcount == 1
        spent = connection.execute(_SPEND_CODE, {"id": user_id, "digest": _digest(user_id, otp)})
        return spent.rowcount == 1

    def take_off(self, connection: Connection, user_id: UUID) -> bool:
        """Forget a user's second factor; whether there was one."""
        return connection.execute(_TAKE_OFF, {"id": user_id}).rowcount == 1

    def _step(self, sealed: str, user_id: UUID, otp: str) -> int | None:
        """The time step that ``otp`` belongs to; None where it is no code of around now."""
        if len(otp) != 6 or not (otp.isascii() and otp.isdigit()):
            return None
        totp = pyotp.TOTP(self._sealer.open(sealed, purpose_of(user_id)))
        try:
            return totp.verify_and_get_timecode(otp, for_time=self._now(), valid_window=_STEPS_AROUND)
        except OTPVerificationError:
            return None


def purpose_of(user_id: UUID) -> str:
    """What the secret of this user is sealed for."""
    return f"second_factors.secret/{user_id}"


def _recovery_code() -> str:
    """80 random bits, in groups that can be read out."""
    letters = base64.b32encode(secrets.token_bytes(_RECOVERY_BYTES)).decode().lower()
    return "-".join(letters[start : start + 4] for start in range(0, len(letters), 4))


def _digest(user_id: UUID, code: str) -> bytes:
    letters = "".join(code.split()).replace("-", "").lower()
    return blake2b(letters.encode(), key=user_id.bytes, digest_size=32).digest()


_ENROL = text("""
INSERT INTO second_factors (user_id, secret) VALUES (:id, :secret)
ON CONFLICT (user_id) DO UPDATE SET secret = excluded.secret, last_step = 0, created_at = now()
WHERE second_factors.confirmed_at IS NULL
""")

_FORGET_CODES = text("DELETE FROM recovery_codes WHERE user_id = :id")

_KEEP_CODE = text("INSERT INTO recovery_codes (user_id, digest) VALUES (:id, :digest)")

_FIND = text("""
SELECT secret, confirmed_at IS NOT NULL AS is_confirmed FROM second_factors WHERE user_id = :id
""")

_CONFIRM = text("""
UPDATE second_factors SET confirmed_at = now(), last_step = :step
WHERE user_id = :id AND secret = :secret AND confirmed_at IS NULL
""")

_SPEND_STEP = text("UPDATE second_factors SET last_step = :step WHERE user_id = :id AND last_step < :step")

_SPEND_CODE = text("DELETE FROM recovery_codes WHERE user_id = :id AND digest = :digest")

_TAKE_OFF = text("DELETE FROM second_factors WHERE user_id = :id")
