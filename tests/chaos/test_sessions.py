"""Tokens that run out, of several APIs at once, are replaced by fresh ones of each."""

import itertools
import json
from collections.abc import Iterator

import pytest

from tests.chaos.sessions import Sessions
from tests.chaos.user import User
from tests.kit.receiver import Exchange, WebhookReceiver, answer

ADA = User("ada", "ada@example.org", "correct horse battery staple")


@pytest.fixture
def urls() -> Iterator[list[str]]:
    numbers = itertools.count(1)

    def log_in(exchange: Exchange) -> None:
        answer(200, json.dumps({"accessToken": f"token-{next(numbers)}"}).encode())(exchange)

    with WebhookReceiver() as one, WebhookReceiver() as other:
        for api in (one, other):
            api.will_always(log_in)
        yield [f"http://127.0.0.1:{api.port}" for api in (one, other)]


def test_token_is_shared_until_it_is_refused_by_the_api_that_gave_it(urls: list[str]) -> None:
    sessions = Sessions()
    first = [sessions.token(url, ADA) for url in urls]
    assert [sessions.token(url, ADA) for url in urls] == first
    for url, token in zip(urls, first, strict=True):
        sessions.refuse(url, ADA, token)
    second = [sessions.token(url, ADA) for url in urls]
    assert len({*first, *second}) == 4
    sessions.refuse(urls[0], ADA, first[0])  # who had it still, comes late
    assert [sessions.token(url, ADA) for url in urls] == second
