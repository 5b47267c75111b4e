"""One attack: a name, what is sent, and what may come back. And the few ways to say one in a line."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.attack.reply import Reply
from tests.attack.target import Target, Who

CLOSED = 0
"""As an expected status: the connection is closed without an answer."""

Headers = Mapping[str, str | bytes] | Sequence[tuple[str, str | bytes]]


@dataclass(frozen=True)
class Attack:
    """Something that a hostile or broken client does.

    Attributes:
        kind: Its row in the table.
        name: What it is, among its kind.
        send: Does it, and returns what came back.
        expected: The statuses that are right; :data:`CLOSED` among them where HTTP itself is broken.
        is_slow: Whether it waits for the server to lose patience.
    """

    kind: str
    name: str
    send: Callable[[Target], Reply]
    expected: frozenset[int]
    is_slow: bool = False

    @property
    def label(self) -> str:
        """Kind and name."""
        return f"{self.kind}: {self.name}"

    def faults(self, target: Target) -> list[str]:
        """Do it; what is wrong with what came back."""
        reply = self.send(target)
        found = list(reply.faults())
        if reply.status not in self.expected:
            wanted = " or ".join(str(status or "closed") for status in sorted(self.expected))
            found.insert(0, f"{reply.status or 'closed'} instead of {wanted}: {reply.body[:200]!r}")
        return found


def statuses(expected: int | Collection[int]) -> frozenset[int]:
    """One status, or several that are right."""
    return frozenset([expected] if isinstance(expected, int) else expected)


def http(
    kind: str,
    name: str,
    method: str,
    path: str,
    expected: int | Collection[int],
    *,
    who: Who | None = "user",
    headers: Headers = (),
    body: bytes | str | None = None,
    json_body: Any = None,
) -> Attack:
    """A request that is valid HTTP.

    Args:
        kind: Its row in the table.
        name: What it is.
        method: Of the request.
        path: May name ``{entity}``, ``{foreign}``, ``{job}`` and ``{foreign_job}``: what the target holds.
        expected: The statuses that are right.
        who: Whose token it carries; None: nobody's.
        headers: Further headers, in this order.
        body: As it is sent, with the content type JSON unless ``headers`` has another.
        json_body: Sent as JSON.
    """

    def send(target: Target) -> Reply:
        return target.request(method, path, who=who, headers=headers, body=body, json_body=json_body)

    return Attack(kind, name, send, statuses(expected))


def raw(
    kind: str,
    name: str,
    data: bytes | Callable[[Target], bytes],
    expected: int | Collection[int],
    *,
    method: str = "GET",
    is_slow: bool = False,
) -> Attack:
    """Bytes as they are; nothing more may come after the first answer than a close."""

    def send(target: Target) -> Reply:
        reply = target.exchange(data(target) if callable(data) else data, method)
        if reply.rest:
            raise AssertionError(f"a second answer: {reply.rest[:120]!r}")
        return reply

    return Attack(kind, name, send, statuses(expected), is_slow)
