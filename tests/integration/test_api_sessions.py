"""Sessions over HTTP: refresh, reuse, logout, second factor, demotion, key rotation in a running API."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import jwt
import pyotp
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import text

from deploy.cli import waybill
from models.container import Container
from models.errors import Unauthorized
from models.identity.principals import Role
from models.identity.users import hash_password
from models.ids import new_id
from tests.kit.api import PASSWORD, Answer, Api, running_api
from tests.kit.waiting import wait_until

ENTITIES = "/api/v1/entities"
HASH = hash_password(PASSWORD)


@pytest.fixture(scope="module")
def api(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(database_url, tmp_path_factory.mktemp("data")) as running:
        yield running


@pytest.fixture
def email(api: Api) -> str:
    """A user of its own."""
    email = f"{new_id().hex}@example.com"
    with api.container.database.transaction() as connection:
        api.container.users.add(connection, email, HASH, Role.USER)
    return email


@pytest.fixture
def run(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    settings = api.container.settings
    environment = {"WAYBILL_DATABASE_URL": settings.database_url, "WAYBILL_DATA_DIR": str(settings.data_dir)}

    def command(*arguments: str) -> Result:
        result = CliRunner().invoke(waybill, arguments, env=environment)
        assert result.exit_code == 0, result.output
        return result

    return command


def post(api: Api, path: str, token: str | None = None, **document: Any) -> Answer:
    return api.request("POST", f"/auth/{path}", role=None, token=token, json_body=document)


def log_in(api: Api, email: str, **more: Any) -> Any:
    answer = post(api, "login", email=email, password=PASSWORD, **more)
    assert answer.status == 200, answer.body
    return answer.json


def refresh(api: Api, token: str) -> Answer:
    return post(api, "refresh", refreshToken=token)


def pass_time(api: Api, seconds: float) -> None:
    """Let the refresh families age."""
    with api.container.database.transaction() as connection:
        connection.execute(
            text("UPDATE refresh_families SET rotated_at = rotated_at - make_interval(secs => :s)"),
            {"s": seconds},
        )


# ---- refresh and log out -----------------------------------------------------------------


def test_refresh_gives_new_tokens_that_work(api: Api, email: str) -> None:
    first = log_in(api, email)
    second = refresh(api, first["refreshToken"])
    assert second.status == 200
    assert second.json.keys() == {"accessToken", "refreshToken", "tokenType", "expiresIn"}
    assert second.json["refreshToken"] != first["refreshToken"]
    assert second.headers["cache-control"] == "no-store"
    assert api.request("GET", ENTITIES, token=second.json["accessToken"]).status == 200
    assert refresh(api, second.json["refreshToken"]).status == 200


def test_twenty_refreshes_at_once_have_one_winner_and_the_session_lives(api: Api, email: str) -> None:
    token = log_in(api, email)["refreshToken"]
    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(lambda _: refresh(api, token), range(20)))
    assert sorted(answer.status for answer in answers) == [200] + [401] * 19
    [winner] = [answer for answer in answers if answer.status == 200]
    assert refresh(api, winner.json["refreshToken"]).status == 200


def test_one_of_many_connections_at_once_wins_a_refresh(api: Api, email: str) -> None:
    # The API's few threads seldom meet; twenty connections that start together do.
    container = Container(api.container.settings, role="race", pool_size=20)
    start = Barrier(20)

    def race(token: str) -> bool:
        with container.database.snapshot():
            start.wait()  # everybody has a connection
        start.wait()
        try:
            container.sign_in.refresh(token)
        except Unauthorized:
            return False
        return True

    with ThreadPoolExecutor(20) as threads:
        wins = [sum(threads.map(race, [log_in(api, email)["refreshToken"]] * 20)) for _ in range(5)]
    container.close()
    assert wins == [1] * 5


def test_reuse_ends_the_whole_family(api: Api, email: str) -> None:
    other = log_in(api, email)["refreshToken"]
    stolen = log_in(api, email)["refreshToken"]
    second = refresh(api, stolen).json["refreshToken"]
    third = refresh(api, second).json["refreshToken"]
    assert refresh(api, stolen).status == 401
    assert refresh(api, third).status == 401
    assert refresh(api, other).status == 200


def test_predecessor_is_reuse_once_the_grace_is_over(api: Api, email: str) -> None:
    first = log_in(api, email)["refreshToken"]
    second = refresh(api, first).json["refreshToken"]
    pass_time(api, 11)
    assert refresh(api, first).status == 401
    assert refresh(api, second).status == 401


def test_logged_out_session_is_over_and_logging_out_twice_is_fine(api: Api, email: str) -> None:
    token = log_in(api, email)["refreshToken"]
    assert post(api, "logout", refreshToken=token).status == 204
    assert refresh(api, token).status == 401
    assert post(api, "logout", refreshToken=token).status == 204
    assert post(api, "logout", refreshToken="nonsense").status == 204


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE refresh_families SET idle_at = now() - interval '1 s'",
        "UPDATE refresh_families SET expires_at = now() - interval '1 s'",
    ],
    ids=["rest", "age"],
)
def test_session_ends_by_rest_and_by_age(api: Api, email: str, change: str) -> None:
    token = log_in(api, email)["refreshToken"]
    with api.container.database.transaction() as connection:
        connection.execute(text(change))
    assert refresh(api, token).status == 401


@pytest.mark.parametrize("token", ["", "x", "wbr_", "wbr_" + "A" * 64, "wbr_" + "é" * 64, "wbr_" + "=" * 64])
def test_refresh_token_of_nobody_is_refused(api: Api, token: str) -> None:
    assert refresh(api, token).status == (400 if not token else 401)


def test_access_and_refresh_tokens_are_not_interchangeable(api: Api, email: str) -> None:
    session = log_in(api, email)
    assert refresh(api, session["accessToken"]).status in (400, 401)
    assert api.request("GET", ENTITIES, token=session["refreshToken"]).status == 401


def test_only_digests_are_stored(api: Api, email: str) -> None:
    token = log_in(api, email)["refreshToken"]
    with api.container.database.snapshot() as connection:
        rows = connection.execute(text("SELECT current_digest FROM refresh_families")).all()
        told = connection.execute(
            text("SELECT string_agg(encode(digest, 'escape'), ' ') FROM login_attempts")
        )
        assert email not in str(told.scalar_one())
    assert all(len(row[0]) == 32 and row[0] not in token.encode() for row in rows)


def test_oldest_of_too_many_sessions_ends(api: Api, email: str) -> None:
    with api.container.database.snapshot() as connection:
        user = api.container.users.by_email(connection, email)
    assert user is not None
    families = api.container.sign_in._families
    tokens = []
    for _ in range(21):
        with api.container.database.transaction() as connection:
            tokens.append(families.begin(connection, user).token)
    assert refresh(api, tokens[0]).status == 401
    assert refresh(api, tokens[1]).status == 200


# ---- the user changes --------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", [("password", "--password", "another"), ("role", "guest"), ("disable",)], ids=lambda one: one[0]
)
def test_change_by_an_operator_ends_sessions(
    api: Api, email: str, run: Callable[..., Result], change: tuple[str, ...]
) -> None:
    token = log_in(api, email)["refreshToken"]
    run("user", change[0], email, *change[1:])
    assert refresh(api, token).status == 401


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE users SET role = 'guest' WHERE email = :email",
        "UPDATE users SET tokens_valid_from = now() WHERE email = :email",
        "UPDATE users SET is_disabled = true WHERE email = :email",
    ],
    ids=["role", "tokens", "disabled"],
)
def test_change_of_the_row_alone_ends_sessions(api: Api, email: str, change: str) -> None:
    token = log_in(api, email)["refreshToken"]
    with api.container.database.transaction() as connection:
        connection.execute(text(change), {"email": email})
    assert refresh(api, token).status == 401


@pytest.mark.parametrize("way", ["log in", "refresh"])
def test_access_token_is_no_newer_than_a_password_changed_before_it_is_handed_out(
    api: Api, email: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = api.container
    refresh_token = log_in(api, email)["refreshToken"]

    def put(*_: object) -> None:
        with container.database.transaction() as connection:
            container.users.set_password(connection, email, HASH)
        changed_in = int(time.time())
        wait_until(lambda: int(time.time()) > changed_in, timeout_seconds=10, what="the second is over")

    monkeypatch.setattr(container.sign_in._cache, "put", put)
    if way == "log in":
        session = container.sign_in.log_in(email, PASSWORD, None, "192.0.2.1")
    else:
        session = container.sign_in.refresh(refresh_token)

    with pytest.raises(Unauthorized):
        admitted(container, session.access_token)


def test_access_token_of_the_second_of_a_change_ends_with_the_next_change(api: Api, email: str) -> None:
    container = api.container
    wait_until(lambda: time.time() % 1 < 0.2, timeout_seconds=30, what="a second has just begun")
    with container.database.transaction() as connection:
        container.users.set_password(connection, email, HASH)
    token = log_in(api, email)["accessToken"]
    admitted(container, token)
    with container.database.transaction() as connection:
        container.users.set_password(connection, email, HASH)
    with pytest.raises(Unauthorized):
        admitted(container, token)


def admitted(container: Container, token: str) -> None:
    """Refuses a token that is not good now, whatever was known of its user before."""
    verified = container.tokens.verify(token)
    [standing] = container.standings.load([verified.principal.id])
    assert standing is not None
    standing.admit(verified)


def test_refresh_waits_for_a_change_that_is_not_committed_and_is_not_in_its_way(api: Api, email: str) -> None:
    database, users = api.container.database, api.container.users
    token = log_in(api, email)["refreshToken"]

    def waits(pid: int) -> bool:
        query = text(
            "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND :pid = ANY(pg_blocking_pids(pid)))"
        )
        with database.snapshot() as connection:
            return bool(connection.execute(query, {"pid": pid}).scalar_one())

    with ThreadPoolExecutor(1) as threads:
        with database.transaction() as connection:
            pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
            change = text(
                "UPDATE users SET tokens_valid_from = clock_timestamp() WHERE email = :email RETURNING id"
            )
            user_id = connection.execute(change, {"email": email}).scalar_one()
            refreshed = threads.submit(api.container.sign_in.refresh, token)
            wait_until(
                lambda: refreshed.done() or waits(pid), timeout_seconds=5, what="the refresh waits or is done"
            )
            users.end_sessions(connection, user_id)
        with pytest.raises(Unauthorized):
            refreshed.result()


def test_demoted_user_has_its_new_role_within_five_seconds(
    api: Api, email: str, run: Callable[..., Result]
) -> None:
    token = log_in(api, email)["accessToken"]
    body = json.dumps({"name": "x"})
    assert api.request("POST", ENTITIES, token=token, body=body).status == 202
    run("user", "role", email, "guest")
    began = time.monotonic()
    wait_until(
        lambda: api.request("POST", ENTITIES, token=token, body=body).status == 403,
        timeout_seconds=10,
        what="the demotion is seen",
    )
    assert time.monotonic() - began < 8  # four by rule, on a busy machine
    assert api.request("GET", ENTITIES, token=token).status == 200


def test_disabled_user_is_refused_within_five_seconds_and_enabled_needs_a_new_login(
    api: Api, email: str, run: Callable[..., Result]
) -> None:
    token = log_in(api, email)["accessToken"]
    assert api.request("GET", ENTITIES, token=token).status == 200
    run("user", "disable", email)
    began = time.monotonic()
    wait_until(
        lambda: api.request("GET", ENTITIES, token=token).status == 401,
        timeout_seconds=10,
        what="the user is out",
    )
    assert time.monotonic() - began < 8  # four by rule, on a busy machine
    assert (
        post(api, "login", email=email, password=PASSWORD).json["message"]
        == (post(api, "login", email=email, password="wrong").json["message"])
    )
    run("user", "enable", email)
    fresh = log_in(api, email)["accessToken"]
    time.sleep(4.1)  # what was known of the user is stale now
    assert api.request("GET", ENTITIES, token=fresh).status == 200
    assert api.request("GET", ENTITIES, token=token).status == 401


def test_requests_of_an_active_user_cost_no_query_of_their_own(api: Api, email: str) -> None:
    token = log_in(api, email)["accessToken"]
    api.request("GET", "/api/v1/callback-endpoints", token=token)
    asked: list[int] = []
    standings = api.container.standings
    read = standings._read
    standings._read = lambda ids, at: (asked.append(len(ids)), read(ids, at))[1]  # type: ignore[method-assign]
    try:
        began = time.monotonic()
        while time.monotonic() - began < 5:
            assert api.request("GET", "/api/v1/callback-endpoints", token=token).status == 200
    finally:
        del standings._read  # type: ignore[method-assign]
    assert 1 <= len(asked) <= 3


# ---- second factor -----------------------------------------------------------------------


def code(secret: str, steps: int = 0) -> str:
    return pyotp.TOTP(secret).at(int(time.time()), counter_offset=steps)


@pytest.fixture
def secret(api: Api, email: str) -> tuple[str, list[str]]:
    """A second factor that is on, by the code of the step before this one; and its recovery codes."""
    access = log_in(api, email)["accessToken"]
    enrolled = post(api, "mfa/enroll", access).json
    assert enrolled["otpauthUri"].startswith("otpauth://totp/Waybill")
    # a step that ends in the middle of a test would confuse it
    wait_until(lambda: time.time() % 30 < 12, timeout_seconds=20, what="a step has just begun")
    assert post(api, "mfa/confirm", access, otp=code(enrolled["secret"], -1)).status == 204
    return enrolled["secret"], enrolled["recoveryCodes"]


def test_code_is_asked_for_only_after_a_right_password(
    api: Api, email: str, secret: tuple[str, list[str]]
) -> None:
    wrong = post(api, "login", email=email, password="wrong").json
    needed = post(api, "login", email=email, password=PASSWORD)
    assert "details" not in wrong
    assert (needed.status, needed.json["details"][0]["field"]) == (401, "otp")
    assert log_in(api, email, otp=code(secret[0]))["accessToken"]


def test_code_is_good_once(api: Api, email: str, secret: tuple[str, list[str]]) -> None:
    otp = code(secret[0])
    with ThreadPoolExecutor(4) as threads:
        answers = list(
            threads.map(lambda _: post(api, "login", email=email, password=PASSWORD, otp=otp), range(4))
        )
    assert sorted(answer.status for answer in answers) == [200, 401, 401, 401]


def test_code_of_two_steps_ago_is_refused(api: Api, email: str, secret: tuple[str, list[str]]) -> None:
    for steps in (-2, 2):
        otp = code(secret[0], steps)
        assert post(api, "login", email=email, password=PASSWORD, otp=otp).status == 401


def test_recovery_code_is_good_once(api: Api, email: str, secret: tuple[str, list[str]]) -> None:
    assert len(set(secret[1])) == 10
    assert log_in(api, email, otp=secret[1][0].upper())
    assert post(api, "login", email=email, password=PASSWORD, otp=secret[1][0]).status == 401
    assert log_in(api, email, otp=secret[1][1])


def test_second_factor_that_is_on_cannot_be_replaced_by_its_session(
    api: Api, email: str, secret: tuple[str, list[str]], run: Callable[..., Result]
) -> None:
    access = log_in(api, email, otp=secret[1][0])["accessToken"]
    assert post(api, "mfa/enroll", access).status == 409
    assert post(api, "mfa/confirm", access, otp="123456").status == 409
    run("user", "mfa-off", email)
    assert log_in(api, email)


def test_unconfirmed_second_factor_is_not_asked_for(api: Api, email: str) -> None:
    access = log_in(api, email)["accessToken"]
    assert post(api, "mfa/confirm", access, otp="123456").status == 404
    first = post(api, "mfa/enroll", access).json
    second = post(api, "mfa/enroll", access).json
    assert post(api, "mfa/confirm", access, otp=code(first["secret"])).status == 401
    assert log_in(api, email)
    assert post(api, "mfa/confirm", access, otp=code(second["secret"])).status == 204


def test_secret_is_sealed_and_sealed_anew_by_command(
    api: Api, email: str, secret: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stored() -> list[str]:
        with api.container.database.snapshot() as connection:
            return list(connection.execute(text("SELECT secret FROM second_factors")).scalars())

    assert all(one.startswith("v1.own.") and secret[0] not in one for one in stored())
    monkeypatch.chdir(tmp_path)
    settings = api.container.settings
    environment = {
        "WAYBILL_DATABASE_URL": settings.database_url,
        "WAYBILL_DATA_DIR": str(settings.data_dir),
        "WAYBILL_SEALING_KEYS": "next:" + "A" * 43 + "=",
    }
    result = CliRunner().invoke(waybill, ["doctor", "--rotate-keys"], env=environment)
    assert result.exit_code == 0, result.output
    assert f"second_factors.secret: {len(stored())} sealed anew" in result.output
    assert all(one.startswith("v1.next.") for one in stored())
    lost = CliRunner().invoke(
        waybill, ["doctor", "--rotate-keys"], env=environment | {"WAYBILL_SEALING_KEYS": ""}
    )
    assert lost.exit_code == 1
    assert "LOST" in lost.output
    with api.container.database.transaction() as connection:
        connection.execute(text("DELETE FROM second_factors"))


# ---- keys --------------------------------------------------------------------------------


def test_running_api_takes_up_a_new_signing_key(api: Api, email: str, run: Callable[..., Result]) -> None:
    before = log_in(api, email)["accessToken"]
    assert "new key" in run("doctor", "--rotate-keys").output
    minted = run("token", email).output.strip()
    after = log_in(api, email)["accessToken"]
    kids = [jwt.get_unverified_header(token)["kid"] for token in (before, minted, after)]
    assert kids[0] != kids[1] == kids[2]
    for token in (before, minted, after):
        assert api.request("GET", ENTITIES, token=token).status == 200
    published = api.request("GET", "/.well-known/jwks.json", role=None).json["keys"]
    assert {kids[0], kids[1]} <= {key["kid"] for key in published}
    assert not any("d" in key or "created" in key for key in published)
