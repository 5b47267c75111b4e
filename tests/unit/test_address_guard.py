"""The callback guard: which URLs and addresses pass, in every spelling we could think of. No network."""

import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from models.deliveries.address_guard import (
    MAX_ADDRESSES,
    MAX_URL_LENGTH,
    CallbackUrl,
    Target,
    check_url,
    resolve,
)
from models.deliveries.address_ranges import is_reachable
from models.errors import Invalid, Transient

PUBLIC = "93.184.215.14"
PUBLIC_6 = "2606:2800:21f:cb07:6820:80da:af6b:8b2c"

INSIDE_URLS = [
    "https://127.0.0.1/",
    "https://127.8.9.10/",
    "https://127.0.0.1./",
    "https://10.0.0.1/",
    "https://172.16.0.1/",
    "https://172.31.255.255/",
    "https://192.168.1.1/",
    "https://100.64.0.1/",
    "https://100.127.255.254/",
    "https://[::1]/",
    "https://[0:0:0:0:0:0:0:1]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:7f00:1]/",
    "https://[::FFFF:10.0.0.1]/",
    "https://[64:ff9b::10.0.0.1]/",
    "https://[64:ff9b::7f00:1]/",
    "https://[fc00::1]/",
    "https://[fd12:3456:789a::1]/",
    "https://localhost/",
    "https://LOCALHOST./",
    "https://api.localhost/",
    "https://receiver/",
    "https://printer.local/",
    "https://db.internal/",
    "https://nas.home.arpa/",
    "https://home.arpa/",
    "https://box.localdomain/",
]
"""Refused, except where private addresses are allowed."""

NEVER_URLS = [
    # spellings of an address other than the usual one
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0X7F000001/",
    "https://017700000001/",
    "https://0x7f.1/",
    "https://0x7f.0.0.1/",
    "https://0177.0.0.1/",
    "https://0177.0.0.01/",
    "https://127.1/",
    "https://127.0.1/",
    "https://127.0.0.1.1/",
    "https://127.0.0.0x1/",
    "https://127.0.0.0x/",
    "https://1.1.1.1.1/",
    "https://08.8.8.8/",
    "https://8.8.8.08/",
    "https://8.8.8.256/",
    "https://8.8.2056/",
    "https://134744072/",
    "https://0/",
    "https://1.2.3.4../",
    "https://example.com.1/",
    "https://example.0x1/",
    # link-local and metadata
    "https://169.254.169.254/latest/meta-data/",
    "https://169.254.0.1/",
    "https://[::ffff:169.254.169.254]/",
    "https://[::ffff:a9fe:a9fe]/",
    "https://[64:ff9b::a9fe:a9fe]/",
    "https://[fe80::1]/",
    "https://[fe80::1%25eth0]/",
    "https://[fe80::1%eth0]/",
    "https://[::1%25lo]/",
    "https://[fd00:ec2::254]/",
    "https://[fd20:ce::254]/",
    "https://100.100.100.200/",
    "https://168.63.129.16/",
    "https://192.0.0.192/",
    # unspecified, multicast, broadcast, reserved, documentation, protocol assignments
    "https://0.0.0.0/",
    "https://0.1.2.3/",
    "https://[::]/",
    "https://[::0.0.0.0]/",
    "https://224.0.0.1/",
    "https://239.255.255.255/",
    "https://240.0.0.1/",
    "https://255.255.255.255/",
    "https://192.0.2.1/",
    "https://198.51.100.1/",
    "https://203.0.113.1/",
    "https://192.88.99.1/",
    "https://[ff02::1]/",
    "https://[100::1]/",
    "https://[2001:db8::1]/",
    "https://[3fff::1]/",
    "https://[4000::1]/",
    # other embeddings of IPv4
    "https://[::127.0.0.1]/",
    "https://[::8.8.8.8]/",
    "https://[2002:7f00:1::]/",
    "https://[2002:808:808::1]/",
    "https://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/",
    "https://[64:ff9b:1::8.8.8.8]/",
    "https://[2606:2800:21f::5efe:7f00:1]/",
    "https://[2606:2800:21f::200:5efe:7f00:1]/",
    # brackets
    "https://[127.0.0.1]/",
    "https://[v1.fe]/",
    "https://[::1/",
    "https://::1]/",
    "https://::1/",
    "https://[]/",
    "https://[[::1]]/",
    "https://[::1]x/",
    "https://x[::1]/",
    # userinfo, and where parsers disagree about it
    "https://user@example.com/",
    "https://user:secret@example.com/",
    "https://@example.com/",
    "https://example.com@127.0.0.1/",
    "https://127.0.0.1#@example.com/",
    "https://example.com\\@127.0.0.1/",
    "https://example.com\\.evil.example/",
    "https:\\\\example.com/",
    "https://example.com:443@127.0.0.1/",
    # percent-encoding, IDNA, Unicode digits and dots
    "https://%31%32%37.0.0.1/",
    "https://127%2e0.0.1/",
    "https://ex%61mple.com/",
    "https://example.com%00.evil.example/",
    "https://①②⑦.⓪.⓪.①/",
    "https://127。0。0。1/",
    "https://１２７.0.0.1/",  # noqa: RUF001 -- full-width digits are the point
    "https://٣.1.2.4/",
    "https://ⓔxample.com/",
    "https://bücher.example/",
    "https://loca\u00adlhost/",
    "https://example.com/bücher",
    # control characters, white space, what no URL may hold
    "https://example.com/\r\nHost: evil",
    "https://example.com/\n",
    "https://example.com/a b",
    " https://example.com/",
    "https://example.com/ ",
    "https://exa\tmple.com/",
    "https://example.com/\x00",
    "https://example.com/\x7f",
    'https://example.com/"',
    "https://example.com/<a>",
    "https://example.com/{a}",
    "https://example.com/|",
    "https://example.com/^",
    "https://example.com/%",
    "https://example.com/%zz",
    "https://example.com/%a",
    # ports
    "https://example.com:0/",
    "https://example.com:65536/",
    "https://example.com:99999/",
    "https://example.com:100000/",
    "https://example.com:-1/",
    "https://example.com:+443/",
    "https://example.com:0443/",
    "https://example.com:/",
    "https://example.com:443:443/",
    "https://example.com:https/",
    "https://example.com:4٤3/",
    # schemes and shapes
    "",
    "example.com",
    "//example.com/",
    "/hook",
    "https:example.com",
    "https:/example.com",
    "https://",
    "https:///hook",
    "https://?q",
    "https://:443/",
    "ftp://example.com/",
    "file:///etc/passwd",
    "gopher://example.com/",
    "javascript://example.com/",
    "httpss://example.com/",
    "https://example.com/#fragment",
    "https://example.com#",
    # names
    "https://./",
    "https://../",
    "https://.example.com/",
    "https://example..com/",
    "https://example.com../",
    "https://-example.com/",
    "https://example-.com/",
    "https://exam!ple.com/",
    "https://exam,ple.com/",
    f"https://{'a' * 64}.com/",
    f"https://{'.'.join(['a' * 49] * 5)}.com/",
    f"https://example.com/{'a' * MAX_URL_LENGTH}",
]
"""Refused, in development too."""

GOOD_URLS = {
    "https://example.com": CallbackUrl("https", "example.com", 443, "/"),
    "HTTPS://EXAMPLE.com./Hook?a=b&c=%20": CallbackUrl("https", "example.com", 443, "/Hook?a=b&c=%20"),
    "https://example.com?a": CallbackUrl("https", "example.com", 443, "/?a"),
    "https://example.com:8443/a/../b//c;d=@:[]": CallbackUrl(
        "https", "example.com", 8443, "/a/../b//c;d=@:[]"
    ),
    "https://xn--bcher-kva.example/": CallbackUrl("https", "xn--bcher-kva.example", 443, "/"),
    "https://my_hooks.example.com:1/": CallbackUrl("https", "my_hooks.example.com", 1, "/"),
    "https://1password.com:65535/": CallbackUrl("https", "1password.com", 65535, "/"),
    "https://example.com/?next=http://user@host/": CallbackUrl(
        "https", "example.com", 443, "/?next=http://user@host/"
    ),
    "https://notlocalhost.com/": CallbackUrl("https", "notlocalhost.com", 443, "/"),
    f"https://{PUBLIC}/": CallbackUrl("https", PUBLIC, 443, "/"),
    f"https://[{PUBLIC_6.upper()}]:8443/": CallbackUrl("https", PUBLIC_6, 8443, "/"),
    "https://[::ffff:8.8.8.8]/": CallbackUrl("https", "::ffff:8.8.8.8", 443, "/"),
}


class ScriptedResolver:
    """Answers what it was told, in order; the last answer stays."""

    def __init__(self, *answers: Sequence[str] | OSError) -> None:
        self.asked: list[tuple[str, int]] = []
        self._answers = list(answers)

    def __call__(self, host: str, port: int, *, type: int) -> Sequence[tuple[int, int, int, str, Any]]:
        assert type == socket.SOCK_STREAM
        self.asked.append((host, port))
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, OSError):
            raise answer
        return [
            (socket.AF_INET6, type, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, type, 6, "", (address, port))
            for address in answer
        ]


def resolve_to(
    *addresses: str, url: str = "https://hooks.example.com/", allow_private: bool = False
) -> Target:
    checked = check_url(url, allow_private=allow_private)
    return resolve(checked, allow_private=allow_private, resolver=ScriptedResolver(addresses))


@pytest.mark.parametrize("url", [*INSIDE_URLS, *NEVER_URLS])
def test_forbidden_spelling_is_refused_at_registration(url: str) -> None:
    with pytest.raises(Invalid) as refusal:
        check_url(url, allow_private=False)

    assert [detail.field for detail in refusal.value.details] == ["url"]


@pytest.mark.parametrize("url", NEVER_URLS)
def test_development_mode_opens_the_inside_and_nothing_else(url: str) -> None:
    with pytest.raises(Invalid):
        check_url(url, allow_private=True)


@pytest.mark.parametrize("url", INSIDE_URLS)
def test_inside_passes_in_development(url: str) -> None:
    assert check_url(url, allow_private=True).scheme == "https"


@pytest.mark.parametrize(("url", "expected"), GOOD_URLS.items())
def test_ordinary_url_passes_in_its_one_spelling(url: str, expected: CallbackUrl) -> None:
    found = check_url(url, allow_private=False)

    if found.host.startswith("::ffff"):  # Python 3.13 writes the last 32 bits with dots, 3.11 in hex
        assert ip_address(found.host) == ip_address(expected.host)
    else:
        assert found == expected


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://user@example.com/", "user name"),
        ("https://bücher.example/", "beyond ASCII"),
        ("https://example.com/a b", "white space"),
        ("https://example.com:0/", "port"),
        ("https://0x7f.1/", "IP address in the usual form"),
        ("https://10.0.0.1/", "address that callbacks may not reach"),
        ("https://db.internal/", "host of the inside"),
        ("ftp://example.com/", "https://"),
    ],
)
def test_refusal_says_what_is_wrong(url: str, reason: str) -> None:
    with pytest.raises(Invalid) as refusal:
        check_url(url, allow_private=False)

    assert reason in refusal.value.details[0].reason


def test_http_is_for_development_only() -> None:
    with pytest.raises(Invalid, match="cannot be used") as refusal:
        check_url("http://example.com/", allow_private=False)

    assert refusal.value.details[0].reason == "must begin with https://"
    assert check_url("http://example.com/", allow_private=True).port == 80


@pytest.mark.parametrize(
    ("url", "host_header", "dependency"),
    [
        ("https://example.com/", "example.com", "example.com:443"),
        ("https://example.com:443/", "example.com", "example.com:443"),
        ("https://example.com:80/", "example.com:80", "example.com:80"),
        ("http://example.com/", "example.com", "example.com:80"),
        ("http://example.com:443/", "example.com:443", "example.com:443"),
        (f"https://[{PUBLIC_6}]/", f"[{PUBLIC_6}]", f"[{PUBLIC_6}]:443"),
    ],
)
def test_host_header_omits_only_the_default_port(url: str, host_header: str, dependency: str) -> None:
    checked = check_url(url, allow_private=True)

    assert (checked.host_header, checked.dependency) == (host_header, dependency)


def test_longest_host_fits_the_breaker_key() -> None:
    host = ".".join(["a" * 49] * 5)

    assert len(host) == 249
    assert len(check_url(f"https://{host}:65535/", allow_private=False).dependency) == 255


def test_literal_address_needs_no_dns() -> None:
    resolver = ScriptedResolver(OSError("must not be asked"))

    target = resolve(
        check_url(f"https://{PUBLIC}/", allow_private=False), allow_private=False, resolver=resolver
    )

    assert target.addresses == (IPv4Address(PUBLIC),)
    assert resolver.asked == []


def test_name_is_asked_for_once_and_pinned() -> None:
    resolver = ScriptedResolver([PUBLIC], ["127.0.0.1"])
    url = check_url("https://hooks.example.com:8443/", allow_private=False)

    target = resolve(url, allow_private=False, resolver=resolver)

    assert target.addresses == (IPv4Address(PUBLIC),)
    assert resolver.asked == [("hooks.example.com", 8443)]


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["169.254.169.254"],
        ["::1"],
        ["::ffff:10.0.0.1"],
        ["fe80::1%eth0"],
        [PUBLIC, "10.0.0.1"],
        ["10.0.0.1", PUBLIC],
        [*(f"93.184.215.{last}" for last in range(1, 9)), "10.0.0.1"],
        [PUBLIC, "0.0.0.0"],  # noqa: S104 -- an answer, not a bind
    ],
)
def test_one_forbidden_address_refuses_the_whole_answer(addresses: list[str]) -> None:
    with pytest.raises(Invalid) as refusal:
        resolve_to(*addresses)

    assert not any(address in str(refusal.value.details) for address in addresses)


def test_addresses_keep_their_order_without_repeats_and_are_few() -> None:
    answer = [PUBLIC_6, PUBLIC, PUBLIC, *(f"93.184.215.{last}" for last in range(20, 40))]

    target = resolve_to(*answer)

    assert target.addresses[:3] == (
        IPv6Address(PUBLIC_6),
        IPv4Address(PUBLIC),
        IPv4Address("93.184.215.20"),
    )
    assert len(target.addresses) == MAX_ADDRESSES


def test_dns64_answer_is_judged_by_the_address_inside() -> None:
    assert resolve_to("64:ff9b::5db8:d70e").addresses == (IPv6Address("64:ff9b::5db8:d70e"),)


def test_private_answer_passes_in_development_but_metadata_does_not() -> None:
    assert resolve_to("10.0.0.1", allow_private=True).addresses == (IPv4Address("10.0.0.1"),)
    with pytest.raises(Invalid):
        resolve_to("169.254.169.254", allow_private=True)


@pytest.mark.parametrize("code", [socket.EAI_AGAIN, socket.EAI_NONAME, socket.EAI_FAIL])
def test_dns_without_an_answer_is_transient(code: int) -> None:
    resolver = ScriptedResolver(socket.gaierror(code, "details of our resolver"))
    url = check_url("https://hooks.example.com/", allow_private=False)

    with pytest.raises(Transient, match=r"^hooks\.example\.com: DNS gives no address$"):
        resolve(url, allow_private=False, resolver=resolver)


def test_empty_dns_answer_is_transient() -> None:
    with pytest.raises(Transient):
        resolve_to()


FORBIDDEN_4 = [
    ip_network(spelling)
    for spelling in [
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
    ]
]


@given(st.sampled_from(FORBIDDEN_4), st.integers(0, 2**32 - 1))
def test_no_address_of_a_forbidden_network_is_reachable_however_it_is_wrapped(
    network: Any, offset: int
) -> None:
    address = network[offset % network.num_addresses]

    for spelling in (f"{address}", f"::ffff:{address}", f"64:ff9b::{address}", f"::{address}"):
        assert not is_reachable(ip_address(spelling), allow_private=False)


@given(st.ip_addresses(v=4), st.ip_addresses(v=6))
def test_development_reaches_at_least_what_production_reaches(four: IPv4Address, six: IPv6Address) -> None:
    for address in (four, six):
        assert is_reachable(address, allow_private=True) >= is_reachable(address, allow_private=False)
        assert not (
            is_reachable(address, allow_private=True) and (address.is_multicast or address.is_link_local)
        )


@given(st.ip_addresses(v=4).filter(lambda address: not is_reachable(address, allow_private=False)), st.data())
def test_no_spelling_of_a_forbidden_ipv4_address_passes(address: IPv4Address, data: st.DataObject) -> None:
    value = int(address)
    octets = address.packed
    spell = data.draw(st.lists(st.sampled_from(["{}", "{:#x}", "0{:o}", "00{}"]), min_size=4, max_size=4))
    spellings = [
        str(address),
        ".".join(form.format(octet) for form, octet in zip(spell, octets, strict=True)),
        spell[0].format(value),
        f"{octets[0]}.{value & 0xFFFFFF}",
        f"{octets[0]}.{octets[1]}.{value & 0xFFFF}",
        f"[::ffff:{address}]",
        f"[::ffff:{value >> 16:x}:{value & 0xFFFF:x}]",
        f"[::{value >> 16:x}:{value & 0xFFFF:x}]",
        f"[64:ff9b::{address}]",
    ]

    for host in spellings:
        with pytest.raises(Invalid):
            check_url(f"https://{host}/", allow_private=False)
        with pytest.raises(Invalid):
            check_url(f"https://{host}./", allow_private=False)


@given(st.text(max_size=60) | st.from_regex(r"https://[ -~]{0,40}", fullmatch=True))
@example("https://[::1%]")
@example("https://[")
@example("https://0x")
def test_any_text_is_refused_or_leaves_nothing_to_interpret(text: str) -> None:
    try:
        url = check_url(text, allow_private=False)
    except Invalid:
        return

    assert url.scheme == "https"
    assert 1 <= url.port <= 65535
    assert url.path.startswith("/")
    assert set(url.host) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-_:")
    assert not set(url.path) & set(" \\\r\n\t\x00#")
