"""Database URLs that name several hosts, of which the one that takes writes is used. Connects to nothing."""

import re
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

_WRITING = frozenset({"read-write", "primary"})


def has_several_hosts(url: str) -> bool:
    """Whether it is ``postgresql://user:password@host:port,host:port/database?...``, as libpq takes it."""
    # Not by urllib: it takes one host, and no more than one in brackets.
    authority = re.split("[/?#]", url.partition("://")[2], maxsplit=1)[0]
    return "," in authority.rpartition("@")[2]


def hosts_of(url: str) -> dict[str, Any]:
    """What libpq reads in a URL: ``host`` and ``port`` are lists of the same length, comma-separated.

    Raises:
        ValueError: It reads nothing, or would be content with a host that takes no writes.
    """
    try:
        parts = conninfo_to_dict(url.replace("postgresql+psycopg://", "postgresql://", 1))
    except psycopg.ProgrammingError:
        parts = {}
    ports = str(parts.get("port", "")).split(",")
    if not parts or not all(port.isdecimal() and 0 < int(port) <= 65535 for port in ports if port):
        raise ValueError("must look like postgresql://user:password@host:port,host:port/database")
    if parts.get("target_session_attrs") not in _WRITING:
        raise ValueError("with several hosts it must end in ?target_session_attrs=read-write")
    return dict(parts)


def server_of(connection: psycopg.Connection[Any]) -> str:
    """Which of the hosts a connection reached."""
    return f"{connection.info.host}:{connection.info.port}"
