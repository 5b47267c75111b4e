"""Editing dead letters: a merge patch of their data, with what is secret in it sealed. Judges no job."""

from collections.abc import Mapping, Set
from typing import Any

import orjson

from models import merge_patch
from models.dead_letters.letters import OpenedLetter
from models.errors import Detail, Invalid, PayloadTooLarge
from models.job import Operation, to_json
from models.log import MASK
from models.registry import Resource
from models.service import MAX_SECRETS

MAX_PAYLOAD_BYTES = 256 * 1024
_WITHOUT_DATA = (Operation.DELETE, Operation.READ)


class Edit:
    """What one order changes in the data of each of its letters.

    Args:
        patch: Merge patch (RFC 7396). Secrets in it are plain, as they would be in a request.
        secret_names: Members, and columns, that are secrets of any resource: an order may be for several.
    """

    def __init__(self, patch: Mapping[str, Any], secret_names: Set[str]) -> None:
        self._patch = dict(patch)
        self._secret_names = secret_names  # nobody should call one by its column, but somebody may
        self._secrets = 0

    def applied(self, resource: Resource, letter: OpenedLetter) -> bytes:
        """The letter's data with the patch applied, as its operation takes it today, fit to be kept.

        Secrets that the patch brings are sealed here: that may take long, so keep it off the event loop.
        Those that the letter has are sealed already, and stay as they are.

        Raises:
            Invalid: The operation has no data, the result does not fit its schema, or the order has brought
                as many secrets as one may.
            PayloadTooLarge: The result is over the limit of a body.
        """
        operation, service = letter.job.operation, resource.service
        if operation in _WITHOUT_DATA:
            left_out = Detail("patch", "must be left out")
            raise Invalid(f"A {operation} has no data to patch", details=[left_out])
        merged = merge_patch.apply(orjson.loads(letter.payload or "{}"), self._patch)
        body = to_json(merged)
        if len(body) > MAX_PAYLOAD_BYTES:
            raise PayloadTooLarge(f"The patched data is over {MAX_PAYLOAD_BYTES} bytes")
        if "id" in merged:
            raise Invalid("A redrive cannot change the id", details=[Detail("patch.id", "must be left out")])
        members = service.secret_members
        brought = self._patch.keys() & merged.keys() & members.keys()
        sealed = frozenset(column for member, column in members.items() if member not in brought)
        payload = service.admit(operation, body, sealed).payload or body
        if not brought:
            return payload
        if self._secrets == MAX_SECRETS:
            raise Invalid(
                f"An edit brings its secrets to at most {MAX_SECRETS} jobs at once: redrive the rest later"
            )
        self._secrets += 1
        return service.secured(payload, letter.job.resource_id, brought)

    def recorded(self, *, is_known: bool) -> dict[str, Any]:
        """The patch as it may be written down, its secrets masked.

        Args:
            is_known: Whether the resource is; else every member may be a secret.
        """
        return {
            name: MASK if name in self._secret_names or not is_known else value
            for name, value in self._patch.items()
        }
