"""What follows from a receiver's answer, as a table and as properties."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.deliveries.delivery_policy import (
    JITTER,
    MAX_AGE,
    MAX_ATTEMPTS,
    MAX_RETRY_AFTER,
    SCHEDULE,
    Answer,
    Decision,
    Delivered,
    DisableEndpoint,
    GiveUp,
    RetryIn,
    decide,
)

YOUNG = timedelta(0)


def steady() -> float:
    """No jitter either way."""
    return 0.5


def after(answer: Answer, attempts: int = 1, age: timedelta = YOUNG) -> Decision:
    return decide(answer, attempts=attempts, age=age, random=steady)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_2xx_is_delivered_however_late(status: int) -> None:
    assert after(Answer(status), attempts=99, age=timedelta(days=99)) == Delivered()


def test_410_disables_the_endpoint() -> None:
    assert after(Answer(410, "host answered 410")) == DisableEndpoint("host answered 410")


def test_refused_url_is_given_up_at_once() -> None:
    refused = Answer(None, "the URL must begin with https://", is_refused=True)

    assert after(refused) == GiveUp("the URL must begin with https://")


@pytest.mark.parametrize(
    "status", [None, 100, 199, 300, 301, 302, 307, 308, 400, 401, 404, 409, 429, 500, 503]
)
def test_everything_else_is_retried(status: int | None) -> None:
    assert after(Answer(status, "no")) == RetryIn(timedelta(seconds=5))


def test_rests_follow_the_schedule_until_the_attempts_are_used_up() -> None:
    rests = [after(Answer(500), attempts=attempt) for attempt in range(1, MAX_ATTEMPTS)]

    assert rests == [RetryIn(rest) for rest in SCHEDULE]
    assert after(Answer(500, "no"), attempts=MAX_ATTEMPTS) == GiveUp(
        "given up after 14 attempts; the last one: no"
    )


def test_schedule_lasts_about_three_days_and_never_shortens() -> None:
    assert timedelta(hours=70) < sum(SCHEDULE, timedelta(0)) < timedelta(hours=74)
    assert list(SCHEDULE) == sorted(SCHEDULE)


def test_attempt_that_fails_after_three_days_was_the_last() -> None:
    just_before = MAX_AGE - timedelta(seconds=1)

    assert isinstance(after(Answer(500), age=just_before), RetryIn)
    assert isinstance(after(Answer(500), age=MAX_AGE), GiveUp)


@pytest.mark.parametrize(
    ("asked", "rest"),
    [
        (timedelta(0), timedelta(seconds=5)),
        (timedelta(seconds=2), timedelta(seconds=5)),
        (timedelta(hours=1), timedelta(hours=1)),
        (timedelta(days=30), timedelta(hours=24)),
    ],
)
def test_retry_after_is_a_minimum_of_at_most_a_day(asked: timedelta, rest: timedelta) -> None:
    assert after(Answer(503, "busy", asked)) == RetryIn(rest)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer(None, "refused"), True),
        (Answer(None, "bad URL", is_refused=True), False),
        (Answer(500), True),
        (Answer(503), True),
        (Answer(429), True),
        (Answer(404), False),
        (Answer(410), False),
        (Answer(302), False),
        (Answer(204), False),
    ],
)
def test_host_is_blamed_for_silence_5xx_and_429(answer: Answer, expected: bool) -> None:
    assert answer.blames_host is expected


@given(
    status=st.none()
    | st.integers(100, 999).filter(lambda status: status != 410 and not 200 <= status <= 299),
    attempts=st.integers(1, MAX_ATTEMPTS - 1),
    age=st.timedeltas(YOUNG, MAX_AGE - timedelta(microseconds=1)),
    asked=st.none() | st.timedeltas(YOUNG, timedelta(days=400)),
    luck=st.floats(0, 1, exclude_max=True),
)
def test_every_rest_keeps_to_jitter_and_retry_after(
    status: int | None, attempts: int, age: timedelta, asked: timedelta | None, luck: float
) -> None:
    decision = decide(Answer(status, "no", asked), attempts=attempts, age=age, random=lambda: luck)

    assert isinstance(decision, RetryIn)
    nominal = SCHEDULE[attempts - 1]
    wanted = min(asked or YOUNG, MAX_RETRY_AFTER)
    assert max(nominal * (1 - JITTER), wanted) <= decision.delay <= max(nominal * (1 + JITTER), wanted)


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=MAX_ATTEMPTS, max_size=MAX_ATTEMPTS))
def test_every_delivery_ends_within_four_days(lucks: list[float]) -> None:
    age = YOUNG
    for attempts, luck in enumerate(lucks, start=1):
        decision = decide(Answer(503), attempts=attempts, age=age, random=lambda luck=luck: luck)
        if isinstance(decision, GiveUp):
            break
        assert isinstance(decision, RetryIn)
        age += decision.delay

    assert isinstance(decision, GiveUp)
    assert timedelta(days=2) < age < timedelta(days=4)


def test_jitter_goes_both_ways() -> None:
    rests = [
        decide(Answer(500), attempts=1, age=YOUNG, random=lambda luck=luck: luck) for luck in (0.0, 0.999)
    ]

    assert rests[0] == RetryIn(timedelta(seconds=4))
    assert isinstance(rests[1], RetryIn)
    assert timedelta(seconds=5.9) < rests[1].delay < timedelta(seconds=6)
