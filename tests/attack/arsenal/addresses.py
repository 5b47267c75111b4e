"""Callback addresses that point inside (server-side request forgery), in every spelling."""

from collections.abc import Iterator

from tests.attack.attack import Attack, http

INSIDE = (
    "https://127.0.0.1/", "https://127.1/", "https://2130706433/", "https://0x7f000001/", "https://0177.0.0.1/",
    "https://0x7f.1/", "https://127.0.0.1./", "https://localhost/", "https://LOCALHOST./", "https://0/",
    "https://0.0.0.0/", "https://[::1]/", "https://[::]/", "https://[::ffff:127.0.0.1]/", "https://[::ffff:7f00:1]/",
    "https://[0:0:0:0:0:0:0:1]/", "https://[64:ff9b::7f00:1]/", "https://[2002:7f00:1::]/", "https://[fe80::1]/",
    "https://[fd00::1]/", "https://10.0.0.1/", "https://172.16.0.1/", "https://192.168.1.1/", "https://100.64.0.1/",
    "https://169.254.169.254/latest/meta-data/", "https://[fd00:ec2::254]/", "https://metadata.google.internal/",
    "https://224.0.0.1/", "https://255.255.255.255/", "https://198.18.0.1/", "https://192.0.2.1/",
    "https://①②⑦.⓪.⓪.①/", "https://127。0。0。1/", "https://%31%32%37.0.0.1/", "https://127.0.0.1%00.example.com/",
    "https://user@127.0.0.1/", "https://example.com@127.0.0.1/", "https://user:pass@example.com/",
    "https://127.0.0.1\\@example.com/", "https://example.com:0/", "https://example.com:99999/", "https:///x",
    "https://", "http://example.com/", "//example.com/", "https:example.com", "gopher://127.0.0.1:6379/_PING",
    "https://[::1%25lo]/", "https://[v1.x]/",
)  # fmt: skip
"""None of them may ever be called."""


def attacks() -> Iterator[Attack]:
    """Each as the address of a callback endpoint."""
    for url in INSIDE:
        yield http("addresses", url, "POST", "/api/v1/callback-endpoints", 400, json_body={"url": url})
