"""Whose address counts: the peer's, or the first one from the right that is no trusted proxy's."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_shim.web.addresses import NO_PROXIES, Proxies, site_of

TRUSTED = Proxies([ip_network("10.0.0.0/8"), ip_network("fd00::/8")])


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.1", (), "10.0.0.1"),
        ("10.0.0.1", (b"203.0.113.7",), "203.0.113.7"),
        ("10.0.0.1", (b"1.1.1.1, 203.0.113.7",), "203.0.113.7"),
        ("10.0.0.1", (b"1.1.1.1", b"203.0.113.7, 10.9.9.9"), "203.0.113.7"),
        ("10.0.0.1", (b"1.1.1.1,203.0.113.7:4711",), "203.0.113.7"),
        ("10.0.0.1", (b"[2001:db8::1]:443",), "2001:db8::1"),
        ("10.0.0.1", (b"::ffff:203.0.113.7",), "203.0.113.7"),
        ("10.0.0.1", (b"10.1.1.1, 10.2.2.2",), "10.1.1.1"),
        ("10.0.0.1", (b"1.1.1.1, unknown",), "10.0.0.1"),
        ("10.0.0.1", (b"1.1.1.1, nonsense, 10.2.2.2",), "10.2.2.2"),
        ("10.0.0.1", (b"1.1.1.1,",), "10.0.0.1"),
        ("fd00::1", (b"203.0.113.7",), "203.0.113.7"),
        ("::ffff:10.0.0.1", (b"203.0.113.7",), "203.0.113.7"),
        ("203.0.113.9", (b"1.1.1.1",), "203.0.113.9"),
        ("", (b"1.1.1.1",), ""),
    ],
)
def test_rightmost_address_that_is_not_trusted_counts(
    peer: str, forwarded: tuple[bytes, ...], client: str
) -> None:
    assert TRUSTED.client(peer, forwarded) == client


def test_nobody_is_trusted_unless_named() -> None:
    assert NO_PROXIES.client("10.0.0.1", [b"1.1.1.1"]) == "10.0.0.1"


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_what_stands_left_of_the_client_never_matters(noise: list[bytes]) -> None:
    assert TRUSTED.client("10.0.0.1", [*noise, b"203.0.113.7, 10.3.3.3"]) == "203.0.113.7"


@pytest.mark.parametrize(
    ("address", "site"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_ipv6_is_told_by_its_64_first_bits(address: str, site: str) -> None:
    assert site_of(address) == site
