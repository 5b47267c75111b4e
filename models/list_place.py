"""Where a page of a list ended, as a cursor keeps it: a sort value as text, by its type. No queries."""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from hashlib import sha256
from typing import Any
from uuid import UUID

from sqlalchemy import Boolean, Date, DateTime, Enum, Float, Integer, Numeric, String, Time, Uuid
from sqlalchemy.types import TypeEngine

from models.errors import Invalid

_LONGEST = 500
"""So many characters fit into a cursor, whatever they are: of a longer text it keeps the digest."""
_IS_DIGEST = "\0"
"""Begins what is no text itself: PostgreSQL keeps no text with a NUL."""

SORTABLE = "text, whole numbers, exact Numeric, Float, Boolean, Date, DateTime, Time, Uuid, Enum"
"""The types of columns that a list may be sorted by, for messages."""


@dataclass(frozen=True, slots=True)
class LongText:
    """A sort value that is too long for a cursor: it is read again off the item that it was found at.

    Attributes:
        digest: Of the text, so that another one is not taken for it.
    """

    digest: str

    def is_of(self, text: str) -> bool:
        """Whether it stands for this text."""
        return _digest(text) == self.digest


def can_sort(kind: TypeEngine[Any]) -> bool:
    """Whether a list may be sorted by a column of this type: whether its values can be places."""
    return _forms(kind) is not None


def place_text(kind: TypeEngine[Any], value: Any) -> str:
    """A sort value of a column of this type, as a cursor keeps it."""
    write, _ = _forms_of(kind)
    return write(value)


def place_value(kind: TypeEngine[Any], text: str) -> Any:
    """The sort value that :func:`place_text` wrote, or the :class:`LongText` that stands for it.

    Raises:
        Invalid: It was written by a version in which the column was of another type.
    """
    _, read = _forms_of(kind)
    try:
        return read(text)
    except (ValueError, LookupError, ArithmeticError) as error:
        raise Invalid("The cursor is not one of this list: begin without it") from error


_Forms = tuple[Callable[[Any], str], Callable[[str], Any]]


def _forms_of(kind: TypeEngine[Any]) -> _Forms:
    forms = _forms(kind)
    if forms is None:
        raise TypeError(f"no list is sorted by {kind!r}")
    return forms


def _forms(kind: TypeEngine[Any]) -> _Forms | None:
    """How a value is written and read; None of a type whose values do not come back as PostgreSQL has them.

    A ``Numeric`` that is read as a float is rounded, and so is a ``Float`` that is read as a decimal.
    """
    match kind:
        case Enum():
            members = kind.enum_class
            return (str, str) if members is None else (lambda member: member.name, members.__getitem__)
        case String():
            return _shortened, _text
        case Boolean():
            return str, {"True": True, "False": False}.__getitem__
        case Integer():
            return str, int
        case Float(asdecimal=False):
            return repr, float
        case Numeric(asdecimal=True) if not isinstance(kind, Float):
            return str, Decimal
        case Date() | DateTime() | Time():
            return lambda moment: moment.isoformat(), kind.python_type.fromisoformat
        case Uuid():
            return str, UUID if kind.as_uuid else str
    return None


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else _IS_DIGEST + _digest(text)


def _text(kept: str) -> str | LongText:
    return LongText(kept.removeprefix(_IS_DIGEST)) if kept.startswith(_IS_DIGEST) else kept


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()
