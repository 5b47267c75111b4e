"""Whose address a request comes from, also behind proxies that are trusted. No limits, no names."""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network
_Address = IPv4Address | IPv6Address

_MOST_HOPS = 32
_IPV6_SITE_BITS = 64


class Proxies:
    """The proxies whose ``X-Forwarded-For`` is believed.

    Args:
        trusted: Networks that they speak from; nobody else's word counts.
    """

    def __init__(self, trusted: Iterable[Network] = ()) -> None:
        self._trusted = tuple(trusted)

    def client(self, peer: str, forwarded: Sequence[bytes]) -> str:
        """The address nearest to us that is not a trusted proxy's: what stands left of it anybody may write.

        Args:
            peer: Who the connection comes from; empty where that is no IP address.
            forwarded: The values of ``X-Forwarded-For``, in the order that they came.
        """
        if not forwarded or not self._trusted or not self._is_trusted(peer):
            return peer
        nearest = peer
        hops = b",".join(forwarded).decode("latin-1").split(",")
        for hop in reversed(hops[-_MOST_HOPS:]):
            address = _parsed(hop.strip())
            if address is None:
                return nearest  # a trusted proxy wrote no address: nothing left of it can be believed
            nearest = str(address)
            if not self._holds(address):
                return nearest
        return nearest

    def _is_trusted(self, peer: str) -> bool:
        address = _parsed(peer)
        return address is not None and self._holds(address)

    def _holds(self, address: _Address) -> bool:
        return any(address in network for network in self._trusted)


NO_PROXIES = Proxies()


def site_of(address: str) -> str:
    """What one caller can be told by: the address, or of IPv6 the /64 that every subscriber has whole."""
    parsed = _parsed(address)
    if isinstance(parsed, IPv6Address):
        return str(ip_network((parsed, _IPV6_SITE_BITS), strict=False))
    return address if parsed is None else str(parsed)


def _parsed(text: str) -> _Address | None:
    """An address as proxies write it: bare, in brackets, with a port, IPv4 mapped into IPv6."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
