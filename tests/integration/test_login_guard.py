"""The guard of the log-in: who fails too often waits, whichever process is asked; the owner does not."""

import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pyotp
import pytest
from pwdlib.hashers.argon2 import Argon2Hasher
from sqlalchemy import text

from deploy.flower import AdminGate
from models.container import Container
from models.errors import RateLimited, Unauthorized
from models.identity.login_guard import FREE_ADDRESS_FAILURES, FREE_FAILURES, LONGEST_LOCK
from models.identity.principals import Role
from models.identity.users import hash_is_current, hash_password
from models.ids import new_id
from models.migrate import migrate
from models.settings import Settings
from tests.kit.api import PASSWORD, running_api

HOME, ELSEWHERE = "192.0.2.1", "203.0.113.9"


@pytest.fixture(scope="module")
def containers(
    database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Container, Container]]:
    """Two processes' worth of collaborators on one database and one data directory."""
    settings = Settings(_env_file=None, database_url=database_url, data_dir=tmp_path_factory.mktemp("data"))
    first, second = Container(settings, role="first"), Container(settings, role="second")
    migrate(first.database.engine)
    yield first, second
    first.close()
    second.close()


@pytest.fixture(autouse=True)
def nobody_has_failed(containers: tuple[Container, Container]) -> None:
    with containers[0].database.transaction() as connection:
        connection.execute(text("DELETE FROM login_attempts"))


@pytest.fixture
def email(containers: tuple[Container, Container], nobody_has_failed: None) -> str:
    email = f"{new_id().hex}@example.com"
    with containers[0].database.transaction() as connection:
        containers[0].users.add(connection, email, hash_password(PASSWORD), Role.USER)
    return email


def fail(container: Container, email: str, address: str, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(Unauthorized):
            container.sign_in.log_in(email, "wrong", None, address)


LOCKS = "SELECT round(extract(epoch FROM max(locked_until - last_at))) FROM login_attempts"
PROLONG = """UPDATE login_attempts
    SET locked_until = clock_timestamp() + (locked_until - last_at) + interval '1 minute'"""
SHORTEN = "UPDATE login_attempts SET locked_until = locked_until - interval '1 minute'"


def wait(container: Container, email: str, address: str) -> int:
    """How long an attempt must wait after the last one that failed.

    The lock that this one made begins now, and is a minute longer for the attempt: a second passes unnoticed.
    """
    began = time.monotonic()
    with container.database.transaction() as connection:
        seconds = int(connection.execute(text(LOCKS)).scalar_one())
        connection.execute(text(PROLONG))
    with pytest.raises(RateLimited) as caught:
        container.sign_in.log_in(email, PASSWORD, None, address)
    assert caught.value.retry_after is not None
    assert seconds + 60 - (time.monotonic() - began) <= caught.value.retry_after <= seconds + 60
    with container.database.transaction() as connection:
        connection.execute(text(SHORTEN))
    return seconds


def pass_time(container: Container, seconds: int) -> None:
    with container.database.transaction() as connection:
        connection.execute(
            text(
                "UPDATE login_attempts SET locked_until = locked_until - make_interval(secs => :s), "
                "last_at = last_at - make_interval(secs => :s)"
            ),
            {"s": seconds},
        )


def test_lock_holds_in_every_process_grows_and_passes(
    containers: tuple[Container, Container], email: str
) -> None:
    first, second = containers
    fail(first, email, ELSEWHERE, FREE_FAILURES + 1)
    assert wait(second, email, ELSEWHERE) == 1
    waits = []
    for _ in range(12):
        pass_time(first, waits[-1] if waits else 1)
        fail(second, email, ELSEWHERE)
        waits.append(wait(first, email, ELSEWHERE))
    assert waits[:4] == [2, 4, 8, 16]
    assert waits[-1] == LONGEST_LOCK.total_seconds()
    pass_time(first, waits[-1])
    assert first.sign_in.log_in(email, PASSWORD, None, ELSEWHERE).access_token


def test_unknown_email_is_locked_like_a_known_one(containers: tuple[Container, Container]) -> None:
    nobody = f"{new_id().hex}@example.com"
    fail(containers[0], nobody, ELSEWHERE, FREE_FAILURES + 1)
    assert wait(containers[0], nobody.upper(), ELSEWHERE) == 1


def test_stranger_does_not_lock_the_owner_out_from_home(
    containers: tuple[Container, Container], email: str
) -> None:
    first, second = containers
    first.sign_in.log_in(email, PASSWORD, None, HOME)
    fail(first, email, ELSEWHERE, FREE_FAILURES + 1)
    assert second.sign_in.log_in(email, PASSWORD, None, HOME).access_token
    assert wait(second, email, ELSEWHERE) == 1  # and the owner's log-in does not help the stranger


def test_guessing_from_home_is_locked_too(containers: tuple[Container, Container], email: str) -> None:
    containers[0].sign_in.log_in(email, PASSWORD, None, HOME)
    fail(containers[0], email, HOME, FREE_FAILURES + 1)
    assert wait(containers[0], email, HOME) == 1


def test_address_that_tries_many_accounts_is_locked(
    containers: tuple[Container, Container], email: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.identity.sign_in.password_matches", lambda *_: False)
    for number in range(FREE_ADDRESS_FAILURES + 1):
        fail(containers[0], f"user{number}@example.com", ELSEWHERE)
    assert wait(containers[1], email, ELSEWHERE) == 1
    fail(containers[1], email, HOME)


def test_failures_are_forgotten_after_an_hour(containers: tuple[Container, Container], email: str) -> None:
    fail(containers[0], email, ELSEWHERE, FREE_FAILURES)
    pass_time(containers[0], 3601)
    fail(containers[0], email, ELSEWHERE, FREE_FAILURES)
    assert containers[0].sign_in.log_in(email, PASSWORD, None, ELSEWHERE)


def test_hash_of_older_parameters_is_renewed_by_a_login(
    containers: tuple[Container, Container], email: str
) -> None:
    container = containers[0]
    old = Argon2Hasher(time_cost=1, memory_cost=8192).hash(PASSWORD)
    with container.database.transaction() as connection:
        container.users.set_password(connection, email, old)
    fail(container, email, HOME)
    container.sign_in.log_in(email, PASSWORD, None, HOME)
    with container.database.snapshot() as connection:
        user = container.users.by_email(connection, email)
    assert user is not None
    assert user.password_hash != old
    assert hash_is_current(user.password_hash)
    assert container.sign_in.log_in(email, PASSWORD, None, HOME)


@pytest.mark.parametrize("role", [Role.ADMIN, Role.USER])
def test_password_alone_at_flower_does_not_help_who_guesses_codes(
    containers: tuple[Container, Container], email: str, role: Role
) -> None:
    container = containers[0]
    with container.database.transaction() as connection:
        container.users.set_role(connection, email, role)
        user = container.users.by_email(connection, email)
        assert user is not None
        enrolled = container.second_factors.enrol(connection, user.principal)
        container.second_factors.confirm(connection, user.principal.id, pyotp.TOTP(enrolled.secret).now())
    for _ in range(FREE_FAILURES):
        guess_code(container, email)

    assert AdminGate(container).admits(basic(f"{email}:{PASSWORD}"), ELSEWHERE) == (role == Role.ADMIN)

    guess_code(container, email)
    assert wait(container, email, ELSEWHERE) == 1


def guess_code(container: Container, email: str) -> None:
    with pytest.raises(Unauthorized):
        container.sign_in.log_in(email, PASSWORD, "no code", ELSEWHERE)


def basic(credentials: str) -> str:
    return "Basic " + b64encode(credentials.encode()).decode()


def test_log_in_at_flower_makes_an_admin_known_there(
    containers: tuple[Container, Container], email: str
) -> None:
    container = containers[0]
    with container.database.transaction() as connection:
        container.users.set_role(connection, email, Role.ADMIN)
    assert AdminGate(container).admits(basic(f"{email}:{PASSWORD}"), HOME)
    fail(container, email, ELSEWHERE, FREE_FAILURES + 1)
    assert AdminGate(container).admits(basic(f"{email}:{PASSWORD}"), HOME)


@pytest.mark.parametrize("authorization", ["Basic \xe9", "Basic 1", basic("a:x")[:-1], "Basic /w=="])
def test_flower_refuses_what_is_no_basic_credential(
    containers: tuple[Container, Container], authorization: str
) -> None:
    assert AdminGate(containers[0]).admits(authorization, ELSEWHERE) is False


def test_email_that_cannot_be_stored_fails_at_flower_like_an_unknown_one(
    containers: tuple[Container, Container],
) -> None:
    gate = AdminGate(containers[0])
    for _ in range(FREE_FAILURES + 1):
        assert gate.admits(basic("a\0b:x"), ELSEWHERE) is False
    with containers[0].database.transaction() as connection:  # a second may pass unnoticed
        connection.execute(text(PROLONG))
    with pytest.raises(RateLimited):
        gate.admits(basic("a\0b:x"), ELSEWHERE)


def test_locked_login_is_429_with_retry_after(database_url: str, tmp_path: Path) -> None:
    with running_api(database_url, tmp_path) as api:
        document = {"email": f"{new_id().hex}@example.com", "password": "x"}
        statuses = [
            api.request("POST", "/auth/login", role=None, json_body=document).status
            for _ in range(FREE_FAILURES + 1)
        ]
        with api.container.database.transaction() as connection:  # a second may pass unnoticed
            connection.execute(text(PROLONG))
        answer = api.request("POST", "/auth/login", role=None, json_body=document)
    assert statuses == [401] * (FREE_FAILURES + 1)
    assert (answer.status, answer.json["error"]) == (429, "RateLimit")
    assert 1 < int(answer.headers["retry-after"]) == answer.json["retryAfter"] <= 61
