"""Server-sent events of one job: every transition once and in order, resumed, bounded, and let go of."""

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from api_shim.changes.hub import Hub
from models.errors import internal_problem
from models.identity.principals import Role
from models.ids import new_id
from models.job import JobState
from models.ledger import Outcome
from models.metrics import STREAMS
from tests.kit.api import Api, now, running_api
from tests.kit.events import EventStream
from tests.kit.waiting import wait_until

ENTITIES, JOBS = "/api/v1/entities", "/api/v1/jobs"
MOST = 5


@pytest.fixture(scope="module")
def api(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    data_dir: Path = tmp_path_factory.mktemp("data")
    with running_api(database_url, data_dir, streams_per_principal=MOST) as running:
        yield running


def _submit(api: Api, *, role: Role = Role.USER) -> Any:
    return api.request("POST", ENTITIES, json_body={"name": "Ada"}, role=role).json


def _stream(api: Api, job: Any, **more: Any) -> EventStream:
    return EventStream(api.port, f"{JOBS}/{job['id']}/events", api.tokens[Role.USER], **more)


def _put_off(api: Api, job: Any) -> None:
    ledger, identifier = api.container.ledger, UUID(job["id"])
    with api.container.database.transaction() as connection:
        lanes, _ = ledger.lock_lanes(connection, [identifier])
        (work,) = [one for one in ledger.open_jobs(connection, lanes, 9) if one.id == identifier]
        attempt, delay = work.attempt + 1, timedelta(0)
        ledger.retry_later(
            connection, work, attempt=attempt, delay=delay, error=internal_problem(None), reason="a fault"
        )


def _finish(api: Api, job: Any, state: JobState) -> None:
    with api.container.database.transaction() as connection:
        outcome = Outcome(job_id=UUID(job["id"]), state=state, attempt=3, error=internal_problem(None))
        api.container.ledger.finish(connection, [outcome])


def _open(api: Api) -> float:
    return STREAMS.labels("events")._value.get()  # type: ignore[no-any-return]


def _states(events: list[Any]) -> list[str]:
    return [one["state"] for one in events]


# ---- what is told -------------------------------------------------------------------------


def test_stream_begins_with_the_present_and_ends_with_the_outcome(api: Api) -> None:
    job = _submit(api)
    stream = _stream(api, job)
    events = stream.events()
    assert next(events) == job
    _put_off(api, job)
    assert next(events)["state"] == "retrying"
    api.apply(job["id"])
    rest = list(events)
    assert _states(rest) == ["succeeded"]
    assert rest[0] == api.request("GET", f"{JOBS}/{job['id']}").json
    assert (stream.answer.status, stream.answer.headers["content-type"]) == (200, "text/event-stream")
    assert stream.answer.headers["cache-control"] == "no-store"
    assert stream.retry


def test_resumed_stream_tells_what_was_missed_once_and_in_order(api: Api) -> None:
    job = _submit(api)
    for _ in range(3):
        _put_off(api, job)
    api.apply(job["id"])
    everything = list(_stream(api, job, last_event_id=0).events())
    assert _states(everything) == ["queued", "retrying", "retrying", "retrying", "succeeded"]
    assert [one["attempt"] for one in everything] == [0, 1, 2, 3, 4]
    assert everything[0] == job
    assert everything[1]["error"]["status"] == 500
    assert not any("result" in one or one["done"] for one in everything[:-1])
    rest = list(_stream(api, job, last_event_id=everything[2]["sequence"]).events())
    assert rest == everything[3:]


def test_redriven_job_was_dead_in_between(api: Api) -> None:
    job = _submit(api)
    _put_off(api, job)
    _finish(api, job, JobState.DEAD)
    dead = api.request("GET", f"{JOBS}/{job['id']}").json
    with api.container.database.transaction() as connection:
        api.container.ledger.redrive(connection, {UUID(job["id"]): None})
    _put_off(api, job)
    api.apply(job["id"])
    seen = list(_stream(api, job, last_event_id=job["sequence"]).events())
    assert _states(seen) == ["retrying", "dead", "queued", "retrying", "succeeded"]
    assert [one["attempt"] for one in seen] == [1, 3, 0, 1, 2]
    assert [one["done"] for one in seen] == [False, True, False, False, True]
    assert [one.get("generation", 1) for one in seen] == [1, 1, 2, 2, 2]
    assert seen[1] == dead
    assert seen[1]["error"]["status"] == 500


def test_discarded_job_was_dead_of_its_error_before(api: Api) -> None:
    job = _submit(api)
    _finish(api, job, JobState.DEAD)
    dead = api.request("GET", f"{JOBS}/{job['id']}").json
    with api.container.database.transaction() as connection:
        api.container.ledger.discard(connection, [UUID(job["id"])])
    seen = list(_stream(api, job, last_event_id=job["sequence"]).events())
    assert seen[0] == dead
    assert [one["error"]["status"] for one in seen] == [500, 500]


def test_death_that_an_older_version_recorded_is_told_with_its_error(api: Api) -> None:
    job = _submit(api)
    _finish(api, job, JobState.DEAD)
    with api.container.database.transaction() as connection:
        api.container.ledger.redrive(connection, {UUID(job["id"]): None})
        older = "UPDATE job_events SET detail = detail -> 'error' WHERE job_id = :id AND state = 'dead'"
        connection.execute(text(older), {"id": job["id"]})
    api.apply(job["id"])
    dead, *_ = _stream(api, job, last_event_id=job["sequence"]).events()
    assert (dead["state"], dead["attempt"], dead["error"]["status"]) == ("dead", 1, 500)
    assert "generation" not in dead


def test_final_job_is_told_at_once_and_a_seen_end_is_204(api: Api) -> None:
    job = _submit(api)
    api.apply(job["id"])
    (final,) = _stream(api, job).events()
    assert final["state"] == "succeeded"
    assert _stream(api, job, last_event_id=final["sequence"]).answer.status == 204


def test_head_has_no_body_and_holds_nothing(api: Api) -> None:
    before = _open(api)
    for _ in range(MOST + 1):
        stream = _stream(api, _submit(api), method="HEAD")
        assert (stream.answer.status, stream.answer.read()) == (200, b"")
    wait_until(lambda: _open(api) == before, what="nothing is held")


def test_quiet_stream_has_a_heartbeat(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    route = next(one for one in api.edge.app.router if one.operation_id == "stream_job_events")
    monkeypatch.setattr(route.handle.__self__, "_heartbeat_seconds", 0.1)
    job = _submit(api)
    stream = _stream(api, job)
    events = stream.events()
    next(events)
    threading.Timer(0.6, api.apply, [job["id"]]).start()
    list(events)
    assert stream.comments >= 2


# ---- who may, and how many ----------------------------------------------------------------


def test_unknown_foreign_and_malformed_are_refused_before_the_first_byte(api: Api) -> None:
    foreign = _submit(api, role=Role.ADMIN)
    assert api.request("GET", f"{JOBS}/{foreign['id']}/events").json["error"] == "NotFound"
    assert api.request("GET", f"{JOBS}/{new_id()}/events").status == 404
    assert api.request("GET", f"{JOBS}/{foreign['id']}/events", role=None).status == 401
    for wrong in ("x", "-1", "1" * 19, "1, 2"):
        answer = api.request("GET", f"{JOBS}/{_submit(api)['id']}/events", headers={"Last-Event-ID": wrong})
        assert (answer.status, answer.json["error"]) == (400, "Validation")


def test_streams_of_one_user_are_bounded_and_let_go_when_the_client_leaves(api: Api) -> None:
    job = _submit(api)
    streams = [_stream(api, job) for _ in range(MOST)]
    for stream in streams:
        next(stream.events())
    refused = api.request("GET", f"{JOBS}/{job['id']}/events")
    assert (refused.status, refused.json["error"]) == (429, "RateLimit")
    assert int(refused.headers["retry-after"]) > 0
    admins = EventStream(api.port, f"{JOBS}/{job['id']}/events", api.tokens[Role.ADMIN])
    assert next(admins.events()) == job
    for stream in (*streams, admins):
        stream.close()
    wait_until(lambda: _open(api) == 0, what="the streams are let go of")
    assert not api.edge.hub.watches.is_wanted
    again = _stream(api, job)
    assert next(again.events()) == job
    again.close()


def test_many_streams_share_one_thread(api: Api) -> None:
    job = _submit(api)
    before = threading.active_count()
    streams = [_stream(api, job) for _ in range(MOST)]
    events = [stream.events() for stream in streams]
    for one in events:
        next(one)
    assert threading.active_count() <= before + 1
    api.apply(job["id"])
    assert [_states(list(one)) for one in events] == [["succeeded"]] * MOST


# ---- the end ------------------------------------------------------------------------------


def test_stop_ends_streams_and_long_polls_at_once(database_url: str, tmp_path: Path) -> None:
    with running_api(database_url, tmp_path) as api:
        job = _submit(api)
        stream = _stream(api, job)
        events = stream.events()
        next(events)
        polled: list[Any] = []
        poll = threading.Thread(
            target=lambda: polled.append(
                api.request("GET", f"{JOBS}/{job['id']}", headers={"Prefer": "wait=20"})
            )
        )
        poll.start()
        hub: Hub = api.edge.hub
        wait_until(lambda: len(hub.watches) == 2, what="both wait")
        began = now()
        api.stop()
        assert list(events) == []
        poll.join(5)
        assert now() - began < 6  # without it the poll waits for 20 s, and the server 8 s for the poll
        assert (polled[0].status, polled[0].json) == (200, job)
        assert len(stream.retry) == 2
