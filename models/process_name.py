"""How a process names its database connections, so that others see which version runs here. No policy."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from sqlalchemy import Connection, text

_LONGEST = 63
"""PostgreSQL cuts longer names."""
_HEAD_LENGTH = 8
_NAME = re.compile(r"waybill-(?P<role>[a-z-]+)(?:/(?P<version>[^+]+)(?:\+(?P<heads>.*))?)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Process:
    """Somebody of ours who is connected.

    Attributes:
        pid: Of its connection, on the database's side.
        version: Of the program; empty where it is so old that it does not say.
        heads: Beginnings of the newest migrations that it knows.
    """

    pid: int
    role: str
    version: str
    heads: tuple[str, ...]

    def __str__(self) -> str:
        """As people are told of it."""
        return f"waybill {self.role} {self.version or 'of an unnamed version'} (connection {self.pid})"


def process_name(role: str, heads: Sequence[str]) -> str:
    """``waybill-<role>/<version>+<newest migrations that it knows>``, for ``pg_stat_activity``."""
    known = "+".join(one[:_HEAD_LENGTH] for one in heads)
    return f"waybill-{role}/{version('waybill')}+{known}"[:_LONGEST]


def living(connection: Connection) -> list[Process]:
    """Every process of ours that is connected to this database, but for this very connection."""
    found = []
    for pid, name in connection.execute(_CONNECTED):
        if (match := _NAME.fullmatch(name)) is not None:
            heads = tuple(filter(None, (match["heads"] or "").split("+")))
            found.append(Process(pid, match["role"], match["version"] or "", heads))
    return found


_CONNECTED = text(
    "SELECT pid, application_name FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name LIKE 'waybill-%' "
    "ORDER BY pid"
)
