"""The guard before a callback: which URLs may be registered, and where one is pinned to. Sends nothing.

::

    check_url ──▶ CallbackUrl ──▶ resolve (asks DNS once) ──▶ Target: addresses to connect to, and no others

The URL grammar is an allow-list, narrower than RFC 3986 on purpose: what two parsers could read differently
(userinfo, backslashes, percent-encoded hosts, Unicode, IPv4 in octal or with missing parts) is refused, not
normalised. The check of spellings gives early, clear answers; safety rests on ``resolve``, which judges the
addresses themselves, and on the sender, which connects to those and never asks DNS again.
"""

import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Protocol

from models.deliveries.address_ranges import IpAddress, is_reachable
from models.errors import Detail, Invalid, Transient

MAX_URL_LENGTH = 2048
MAX_HOST_LENGTH = 249
"""DNS ends at 253; so ``host:port`` always fits the 255 characters that name a breaker."""
MAX_ADDRESSES = 4
"""How many addresses of one answer are tried: an answer of hundreds must not make us a port scanner."""

_DEFAULT_PORTS = {"https": 443, "http": 80}
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)(\?[^#]*)?(#.*)?")
_AUTHORITY = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::(.*))?")
_NOT_A_URL_CHARACTER = re.compile(r"[^A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")
_INSIDE_NAMES = ("localhost", "localdomain", "local", "internal", "home.arpa")


class Resolver(Protocol):
    """``socket.getaddrinfo``, or what stands in for it."""

    def __call__(self, host: str, port: int, *, type: int) -> Sequence[tuple[int, int, int, str, Any]]:
        """The addresses of ``host``, or ``socket.gaierror``."""
        ...


@dataclass(frozen=True, slots=True)
class CallbackUrl:
    """A callback URL that passed ``check_url``.

    Attributes:
        scheme: ``https`` or ``http``.
        host: Lower-case ASCII name without a trailing dot, or an IP address without brackets.
        port: 1 to 65535, the scheme's own where the URL names none.
        path: What stands in the request line: path and query, at least ``/``.
    """

    scheme: str
    host: str
    port: int
    path: str

    @property
    def dependency(self) -> str:
        """``host:port``: what a breaker is kept for."""
        return f"{self._bracketed_host}:{self.port}"

    @property
    def host_header(self) -> str:
        """The ``Host`` header: without the port where it is the scheme's own."""
        return self._bracketed_host if self.port == _DEFAULT_PORTS[self.scheme] else self.dependency

    @property
    def _bracketed_host(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


@dataclass(frozen=True, slots=True)
class Target:
    """Where one delivery may connect to: the checked URL and its checked addresses, best first."""

    url: CallbackUrl
    addresses: tuple[IpAddress, ...]


def check_url(url: str, *, allow_private: bool) -> CallbackUrl:
    """Check how a callback URL is written, without asking DNS: what registration does.

    Args:
        url: As the user gave it.
        allow_private: Development: ``http``, names of the inside and private addresses pass too.

    Raises:
        Invalid: 400, with one detail on member ``url`` that says what is wrong.
    """
    if len(url) > MAX_URL_LENGTH:
        raise _invalid(f"is longer than {MAX_URL_LENGTH} characters")
    if not url.isascii():
        raise _invalid("holds characters beyond ASCII: write the host as xn--…, the rest percent-encoded")
    if _NOT_A_URL_CHARACTER.search(url):
        raise _invalid("holds white space, a control character or another one that no URL may hold")
    if _BAD_ESCAPE.search(url):
        raise _invalid("holds a % that does not begin a percent-encoding")
    parts = _URL.fullmatch(url)
    if parts is None:
        raise _invalid("is not an absolute URL (https://host/path)")
    scheme, authority, path, query, fragment = parts.groups(default="")
    scheme = scheme.lower()
    if scheme != "https" and not (scheme == "http" and allow_private):
        raise _invalid("must begin with https://")
    if fragment:
        raise _invalid("must not hold a fragment (#…)")
    if "@" in authority:
        raise _invalid("must not hold a user name or password")
    host, port = _split_authority(authority, scheme)
    return CallbackUrl(scheme, _check_host(host, allow_private=allow_private), port, (path or "/") + query)


def resolve(url: CallbackUrl, *, allow_private: bool, resolver: Resolver = socket.getaddrinfo) -> Target:
    """Ask DNS once and pin what it says. Blocks as long as ``resolver`` does.

    Every address of the answer must be reachable, not just one of them: an answer that mixes the inside with
    the outside is how rebinding looks, and choosing the good half would hide it.

    Raises:
        Invalid: The name has a forbidden address now. (DNS may say something else tomorrow.)
        Transient: DNS gave no address: it failed, or does not know the name at present.
    """
    addresses = _literal(url.host) or _ask(url, resolver)
    if not all(is_reachable(address, allow_private=allow_private) for address in addresses):
        raise _invalid("resolves to an address that callbacks may not reach")
    return Target(url, addresses[:MAX_ADDRESSES])


def _invalid(reason: str) -> Invalid:
    return Invalid("The callback URL cannot be used", details=[Detail("url", reason)])


def _split_authority(authority: str, scheme: str) -> tuple[str, int]:
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None:
        raise _invalid("does not name its host and port as host:port")
    host, port = parts.groups()
    if port is None:
        return host, _DEFAULT_PORTS[scheme]
    if not _PORT.fullmatch(port) or int(port) > 65535:
        raise _invalid("must name a port from 1 to 65535, or none")
    return host, int(port)


def _check_host(host: str, *, allow_private: bool) -> str:
    """The host in its one spelling: an address as ``ipaddress`` writes it, a name in lower case."""
    if not host.startswith("["):
        host = host.lower().removesuffix(".")
        if _NUMBER.fullmatch(host.rpartition(".")[2]) is None:
            return _check_name(host, allow_private=allow_private)
    # It can only be an address: resolvers read any name that ends in a number as IPv4 (WHATWG URL, 3.5).
    try:
        address = IPv6Address(host[1:-1]) if host.startswith("[") else IPv4Address(host)
    except ValueError:
        raise _invalid("does not write its IP address in the usual form") from None
    if not is_reachable(address, allow_private=allow_private):
        raise _invalid("names an address that callbacks may not reach")
    return str(address)


def _check_name(name: str, *, allow_private: bool) -> str:
    if len(name) > MAX_HOST_LENGTH or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise _invalid("does not name a valid host")
    if not allow_private and ("." not in name or f".{name}".endswith(tuple(f".{n}" for n in _INSIDE_NAMES))):
        raise _invalid("names a host of the inside, which callbacks may not reach")
    return name


def _literal(host: str) -> tuple[IpAddress, ...]:
    try:
        return (ip_address(host),)
    except ValueError:
        return ()


def _ask(url: CallbackUrl, resolver: Resolver) -> tuple[IpAddress, ...]:
    try:
        answer = resolver(url.host, url.port, type=socket.SOCK_STREAM)
    except OSError as error:  # gaierror is one; "no such name" may be a zone in trouble, so it passes too
        raise Transient(f"{url.host}: DNS gives no address") from error
    addresses = tuple(dict.fromkeys(ip_address(sockaddr[0]) for *_, sockaddr in answer))
    if not addresses:
        raise Transient(f"{url.host}: DNS gives no address")
    return addresses
