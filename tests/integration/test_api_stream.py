"""The WebSocket: many jobs over one connection, in one order, none skipped; who may, how long, how many."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from api_shim.routes import stream as conversation
from models.identity.keys import load_jwk_set
from models.identity.principals import Role
from models.identity.tokens import Tokens
from models.ids import new_id
from models.metrics import STREAMS
from tests.kit.api import Api, now, running_api
from tests.kit.waiting import wait_until

ENTITIES, STREAM = "/api/v1/entities", "/api/v1/stream"
MOST = 4


@pytest.fixture(scope="module")
def api(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    data_dir: Path = tmp_path_factory.mktemp("data")
    with running_api(database_url, data_dir, streams_per_principal=MOST) as running:
        yield running


@contextmanager
def _socket(api: Api, *, role: Role | None = Role.USER) -> Iterator[ClientConnection]:
    with connect(f"ws://127.0.0.1:{api.port}{STREAM}", compression=None) as socket:
        if role is not None:
            _say(socket, token=api.tokens[role])
        yield socket


def _say(socket: ClientConnection, **members: Any) -> None:
    socket.send(json.dumps(members))


def _next(socket: ClientConnection, timeout: float = 10) -> Any:
    return json.loads(socket.recv(timeout))


def _silent(socket: ClientConnection, seconds: float = 0.4) -> bool:
    try:
        return not socket.recv(seconds)
    except TimeoutError:
        return True


def _closed(socket: ClientConnection, timeout: float = 10) -> int:
    with pytest.raises(ConnectionClosed) as closed:
        _drain(socket, timeout)
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code


def _drain(socket: ClientConnection, timeout: float) -> None:
    while True:
        socket.recv(timeout)


def _submit(api: Api, *, role: Role = Role.USER, name: str = "Ada") -> Any:
    return api.request("POST", ENTITIES, json_body={"name": name}, role=role).json


def _states(frames: list[Any]) -> list[tuple[str, str]]:
    assert all(set(one) == {"sequence", "job"} for one in frames), frames
    assert all(one["sequence"] == one["job"]["sequence"] for one in frames)
    return [(one["job"]["id"], one["job"]["state"]) for one in frames]


# ---- what is told --------------------------------------------------------------------------


def test_single_jobs_present_state_first_then_every_transition(api: Api) -> None:
    one, two, other = _submit(api), _submit(api), _submit(api)
    with _socket(api) as socket:
        _say(socket, subscribe=[two["id"], one["id"]])
        first = [_next(socket), _next(socket)]
        assert _states(first) == [(one["id"], "queued"), (two["id"], "queued")]
        assert first[0]["job"] == one
        api.apply(other["id"])
        api.apply(two["id"])
        api.apply(one["id"])
        assert _states([_next(socket), _next(socket)]) == [(two["id"], "succeeded"), (one["id"], "succeeded")]
        assert _silent(socket)


def test_mine_is_every_job_of_mine_and_nobody_elses(api: Api) -> None:
    with _socket(api) as socket:
        _say(socket, subscribe="mine", after=_submit(api)["sequence"])
        _submit(api, role=Role.ADMIN)
        mine = _submit(api)
        api.apply(mine["id"])
        assert _states([_next(socket), _next(socket)]) == [(mine["id"], "queued"), (mine["id"], "succeeded")]
        assert _silent(socket)


def test_mine_without_after_begins_now(api: Api) -> None:
    _submit(api)
    with _socket(api) as socket:
        _say(socket, subscribe="mine")
        wait_until(lambda: len(api.edge.hub.feed._live) == 1, what="it has joined")
        job = _submit(api)
        assert _next(socket)["job"] == job


def test_resumed_stream_misses_nothing_and_repeats_nothing(api: Api) -> None:
    before = _submit(api)
    jobs = [_submit(api)["id"] for _ in range(300)]
    api.apply(*jobs)
    with _socket(api) as socket:
        _say(socket, subscribe="mine", after=before["sequence"])
        frames = [_next(socket) for _ in range(250)]
    with _socket(api) as socket:
        _say(socket, subscribe="mine", after=frames[-1]["sequence"])
        frames += [_next(socket) for _ in range(350)]
        assert _silent(socket)
    sequences = [one["sequence"] for one in frames]
    assert sequences == sorted(set(sequences))
    assert sorted(_states(frames)) == sorted(
        (job, state) for job in jobs for state in ("queued", "succeeded")
    )


def test_subscriptions_add_up_and_tell_nothing_twice(api: Api) -> None:
    one, two = _submit(api), _submit(api)
    with _socket(api) as socket:
        _say(socket, subscribe=[one["id"]])
        _next(socket)
        _say(socket, subscribe=[one["id"], two["id"]])
        assert _states([_next(socket)]) == [(two["id"], "queued")]
        _say(socket, subscribe="mine")
        wait_until(lambda: len(api.edge.hub.feed._live) == 3, what="all have joined")
        api.apply(one["id"])
        assert _states([_next(socket)]) == [(one["id"], "succeeded")]
        assert _silent(socket)


def test_transaction_held_open_while_later_ones_commit_is_not_skipped(api: Api) -> None:
    """A sequence is drawn before the commit: the lower one must be told, and told first."""
    early, late = _submit(api), _submit(api)
    with _socket(api) as socket:
        _say(socket, subscribe=[early["id"], late["id"]])
        start = [_next(socket), _next(socket)]
        database = api.container.database
        with database.transaction() as held:
            api.container.ledger.cancel(held, UUID(early["id"]))
            api.apply(late["id"])  # a higher sequence, committed first
            assert _silent(socket, 1.5)
            with _socket(api) as resumed:  # nor is it skipped by who comes back meanwhile
                _say(resumed, subscribe=[early["id"], late["id"]], after=start[-1]["sequence"])
                assert _silent(resumed, 0.5)
        frames = [_next(socket), _next(socket)]
    assert _states(frames) == [(early["id"], "cancelled"), (late["id"], "succeeded")]
    assert frames[0]["sequence"] < frames[1]["sequence"]


def test_sequence_that_was_rolled_back_holds_nobody_up(api: Api) -> None:
    job = _submit(api)
    with _socket(api) as socket:
        _say(socket, subscribe=[job["id"]])
        _next(socket)
        connection = api.container.database.engine.connect()
        connection.execute(text("SELECT nextval('job_sequence')"))  # has no transaction id, and is held open
        api.apply(job["id"])
        assert _silent(socket, 1)
        connection.rollback()
        connection.close()
        assert _states([_next(socket)]) == [(job["id"], "succeeded")]


def test_slow_follower_falls_back_and_loses_nothing(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api_shim.changes.feed.MOST_WAITING", 5)
    with _socket(api) as socket:
        _say(socket, subscribe="mine", after=_submit(api)["sequence"])
        jobs = [_submit(api)["id"] for _ in range(60)]
        api.apply(*jobs)  # more at once than may wait
        frames = [_next(socket) for _ in range(120)]
    sequences = [one["sequence"] for one in frames]
    assert sequences == sorted(set(sequences))


# ---- who may -------------------------------------------------------------------------------


def test_foreign_and_unknown_jobs_are_not_found_and_refuse_only_themselves(api: Api) -> None:
    mine, foreign = _submit(api), _submit(api, role=Role.ADMIN)
    with _socket(api) as socket:
        _say(socket, subscribe=[foreign["id"], mine["id"], str(new_id())])
        frames = [_next(socket), _next(socket)]
        (error,) = [one for one in frames if "error" in one]
        (frame,) = [one for one in frames if "job" in one]
        assert (error["status"], error["error"]) == (404, "NotFound")
        assert [one["field"] for one in error["details"]] == ["subscribe.0", "subscribe.2"]
        assert {"type", "title", "status", "error", "message", "requestId"} <= set(error)
        assert frame["job"] == mine
    with _socket(api, role=Role.ADMIN) as socket:
        _say(socket, subscribe=[mine["id"]])
        assert _next(socket)["job"] == mine


@pytest.mark.parametrize(
    ("first", "code", "error"),
    [
        ('{"token": "nonsense"}', 4401, "Unauthorized"),
        ('{"token": 7}', 4401, "Unauthorized"),
        ('{"subscribe": "mine"}', 4401, "Unauthorized"),
        ('{"token": "é\\u0001"}', 4401, "Unauthorized"),
        ("not json", 4400, "Validation"),
        ("[]", 4400, "Validation"),
        ('{"token": "a", "token": "b"}', 4400, "Validation"),
        ("[" * 5000, 4400, "Validation"),
    ],
)
def test_bad_first_message_is_told_and_closes(api: Api, first: str, code: int, error: str) -> None:
    with _socket(api, role=None) as socket:
        socket.send(first)
        assert _next(socket)["error"] == error
        assert _closed(socket) == code


def test_silence_instead_of_a_token_closes(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = api.edge.app._sockets[STREAM]
    assert handler._token_seconds == 5  # type: ignore[attr-defined]
    monkeypatch.setattr(handler, "_token_seconds", 0.3)
    with _socket(api, role=None) as socket:
        assert _closed(socket) == 4408


@pytest.mark.parametrize(
    "message",
    [
        {"subscribe": "all"},
        {"subscribe": []},
        {"subscribe": ["x"]},
        {"subscribe": [7]},
        {"subscribe": {}},
        {},
        {"subscribe": "mine", "after": -1},
        {"subscribe": "mine", "after": True},
        {"subscribe": "mine", "after": "1"},
        {"subscribe": "mine", "after": 1.5},
        {"subscribe": "mine", "more": 1},
        {"subscribe": [str(new_id())] * 1_001},
    ],
)
def test_bad_subscription_is_told_and_the_next_one_counts(api: Api, message: Any) -> None:
    job = _submit(api)
    with _socket(api) as socket:
        _say(socket, **message)
        assert _next(socket)["error"] == "Validation"
        _say(socket, subscribe=[job["id"]])
        assert _next(socket)["job"] == job


def test_binary_too_large_and_endless_mistakes_close(api: Api) -> None:
    with _socket(api) as socket:
        socket.send(b"\x00")
        assert _closed(socket) == 1003
    with _socket(api) as socket:
        socket.send("x" * 70_000)
        assert _closed(socket) == 1009
    with _socket(api) as socket:
        for _ in range(10):
            socket.send("x")
        assert _closed(socket) == 1008


def test_stream_does_not_outlive_its_token(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "RECHECK_SECONDS", 0.2)
    brief = Tokens(load_jwk_set(api.container.settings), lifetime=timedelta(seconds=-4))
    token = brief.issue(api.users[Role.USER])  # good for a second, by the leeway of five
    with _socket(api, role=None) as socket:
        _say(socket, token=token, subscribe="mine")
        began = now()
        assert _closed(socket) == 4401
        assert now() - began < 4


def test_sockets_of_one_user_are_bounded_and_let_go(api: Api) -> None:
    wait_until(lambda: STREAMS.labels("websocket")._value.get() == 0, what="earlier ones are gone")
    sockets = [connect(f"ws://127.0.0.1:{api.port}{STREAM}", legacy=True) for _ in range(MOST + 1)]
    for socket in sockets[:MOST]:
        _say(socket, token=api.tokens[Role.USER])
    wait_until(lambda: STREAMS.labels("websocket")._value.get() == MOST, what="all are in")
    _say(sockets[MOST], token=api.tokens[Role.USER])
    assert _next(sockets[MOST])["error"] == "RateLimit"
    assert _closed(sockets[MOST]) == 4429
    for socket in sockets:
        socket.close()
    wait_until(lambda: STREAMS.labels("websocket")._value.get() == 0, what="all are let go of")
    assert not api.edge.hub.feed.is_wanted


def test_other_paths_are_not_found_and_the_path_is_no_page(api: Api) -> None:
    for path in ("/", "/api/v1/entities", "/api/v1/stream/"):
        with pytest.raises(InvalidStatus) as refused, connect(f"ws://127.0.0.1:{api.port}{path}"):
            pass
        assert refused.value.response.status_code == 404
        assert json.loads(refused.value.response.body or b"")["error"] == "NotFound"
    assert api.request("GET", STREAM).status == 404


def test_ping_is_answered(api: Api) -> None:
    with _socket(api) as socket:
        assert socket.ping().wait(5)


def test_stop_closes_with_restart_and_a_place_to_come_back_to(database_url: str, tmp_path: Path) -> None:
    with running_api(database_url, tmp_path) as api, _socket(api) as socket:
        job = _submit(api)
        _say(socket, subscribe=[job["id"]])
        assert _next(socket)["job"] == job
        with _socket(api, role=None) as nobody, _socket(api) as idle:
            time.sleep(0.1)
            began = now()
            api.stop()
            with pytest.raises(ConnectionClosed) as closed:
                socket.recv(5)
            assert _closed(nobody, 5) == 1012
            assert _closed(idle, 5) == 1012
            assert now() - began < 6  # the server waits 8 s for who is not sent off
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        assert f"after={job['sequence']}" in closed.value.rcvd.reason


def test_many_sockets_share_one_thread(api: Api) -> None:
    job = _submit(api)
    with _socket(api) as warm:
        _say(warm, subscribe=[job["id"]])
        _next(warm)
        before = {one.name for one in threading.enumerate() if not one.name.startswith("Thread-")}
        with _socket(api) as two, _socket(api) as three:
            for socket in (two, three):
                _say(socket, subscribe=[job["id"]])
                _next(socket)
            after = {one.name for one in threading.enumerate() if not one.name.startswith("Thread-")}
    assert {one for one in after - before if not one.startswith("past_")} == set()
