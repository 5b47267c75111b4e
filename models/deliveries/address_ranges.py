"""Which IP addresses a callback may reach: the one table of ranges. No URLs, no names, no sockets.

The ranges stand here, and not in ``ipaddress.is_global``, because that answer changed between patch releases
of Python, and a rule of safety must not depend on which one is installed. Source: the IANA special-purpose
address registries (RFC 6890 and its updates), and the cloud vendors' manuals.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

IpAddress = IPv4Address | IPv6Address
_Network = IPv4Network | IPv6Network


def _networks(*spellings: str) -> tuple[_Network, ...]:
    return tuple(ip_network(spelling) for spelling in spellings)


_PRIVATE = _networks(
    "10.0.0.0/8",
    "100.64.0.0/10",  # carrier-grade NAT
    "127.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "198.18.0.0/15",  # benchmarks; some proxies hand these out as stand-ins
    "::1/128",
    "fc00::/7",
)
"""Somebody's inside. Reached only where private addresses are allowed (development)."""

_NEVER = _networks(
    "0.0.0.0/8",
    "169.254.0.0/16",  # link-local, and every cloud's metadata service
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "100.100.100.200/32",  # Alibaba Cloud metadata
    "168.63.129.16/32",  # Azure's host agent, inside a public range
    "fd00:ec2::254/128",  # AWS metadata
    "fd20:ce::254/128",  # Google Cloud metadata
    "2001::/23",  # Teredo, ORCHID and other protocol assignments
    "2001:db8::/32",
    "2002::/16",  # 6to4 embeds an IPv4 address; nobody serves from there any more
    "3fff::/20",
)
"""No receiver lives here, or one that gives away credentials. Never reached, not even in development."""

_GLOBAL_UNICAST = IPv6Network("2000::/3")
_IPV4_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_ISATAP_INTERFACES = (0x00005EFE, 0x02005EFE)


def is_reachable(address: IpAddress, *, allow_private: bool) -> bool:
    """Whether a callback may be sent to ``address``.

    An IPv6 address that carries an IPv4 one and would be routed to it is judged by what it carries:
    IPv4-mapped (RFC 4291) and NAT64 (RFC 6052; what DNS64 answers on an IPv6-only network). Other embeddings
    (IPv4-compatible, 6to4, Teredo, ISATAP, local-use NAT64) and scoped addresses are never reachable.
    """
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return False
        if address in _IPV4_MAPPED or address in _NAT64:
            return is_reachable(IPv4Address(int(address) & 0xFFFFFFFF), allow_private=allow_private)
    if _lies_in(address, _NEVER):
        return False
    if _lies_in(address, _PRIVATE):
        return allow_private
    if isinstance(address, IPv4Address):
        return True
    return address in _GLOBAL_UNICAST and (int(address) >> 32) & 0xFFFFFFFF not in _ISATAP_INTERFACES


def _lies_in(address: IpAddress, networks: tuple[_Network, ...]) -> bool:
    return any(address in network for network in networks)
