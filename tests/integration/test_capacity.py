"""Back-pressure on a real ledger: what counts as full, what is let in all the same, when to come back."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from models import capacity as capacity_module
from models.capacity import LONGEST_SECONDS, UNKNOWN_SECONDS, Capacity
from models.errors import Unavailable
from models.job import Priority
from tests.kit.api import Answer, Api, running_api
from tests.kit.platform import Platform
from tests.kit.waiting import wait_until

ENTITIES = "/api/v1/entities"


@pytest.fixture(autouse=True)
def _empty(platform: Platform) -> Iterator[None]:
    platform.end_everything()
    yield
    platform.end_everything()


def _capacity(platform: Platform, jobs: int = 0, age_seconds: int = 0) -> Capacity:
    capacity = Capacity(platform.database, jobs, timedelta(seconds=age_seconds))
    capacity.read()
    return capacity


def _age(platform: Platform, job: UUID, seconds: int) -> None:
    """Make a job look as if it had been queued so long ago."""
    platform.rows(
        "UPDATE job_events SET at = at - CAST(:age AS interval) WHERE job_id = :id RETURNING job_id",
        id=job,
        age=f"{seconds} seconds",
    )


def _refusal(capacity: Capacity, priority: Priority = Priority.NORMAL) -> Unavailable:
    with pytest.raises(Unavailable) as refused:
        capacity.admit(priority)
    return refused.value


def test_open_jobs_up_to_the_mark_are_let_in(platform: Platform) -> None:
    platform.accept(*(platform.create() for _ in range(7)))
    capacity = _capacity(platform, jobs=10)
    for _ in range(3):
        capacity.admit(Priority.NORMAL)
    assert _refusal(capacity).retry_after == UNKNOWN_SECONDS


def test_high_priority_has_a_reserve(platform: Platform) -> None:
    platform.accept(*(platform.create() for _ in range(10)))
    capacity = _capacity(platform, jobs=10)
    _refusal(capacity)
    _refusal(capacity, Priority.BULK)
    capacity.admit(Priority.HIGH)
    _refusal(capacity, Priority.HIGH)


def test_scheduled_and_finished_jobs_take_no_room(platform: Platform) -> None:
    done = platform.accept(platform.create())
    platform.applier().apply(done)
    ((later,),) = platform.rows("SELECT now() + interval '1 hour'")
    platform.accept(*(platform.create(run_at=later) for _ in range(5)))
    _capacity(platform, jobs=1).admit(Priority.NORMAL)


def test_oldest_job_closes_the_door_for_its_own_priority(platform: Platform) -> None:
    (old,) = platform.accept(platform.create())
    _age(platform, old, 100)
    _capacity(platform, age_seconds=120).admit(Priority.NORMAL)
    capacity = _capacity(platform, age_seconds=60)
    _refusal(capacity)
    capacity.admit(Priority.HIGH)


def test_job_behind_a_retry_is_not_the_platforms_age(platform: Platform) -> None:
    head = platform.create()
    (first,) = platform.accept(head)
    (behind,) = platform.accept(platform.patch(head.resource_id, name="b"))
    for job in (first, behind):
        _age(platform, job, 100)
    platform.rows(
        "UPDATE jobs SET state = 'retrying', run_at = now() + interval '1 hour' WHERE id = :id RETURNING id",
        id=first,
    )
    _capacity(platform, age_seconds=60).admit(Priority.NORMAL)


def test_retry_after_is_what_draining_takes(platform: Platform) -> None:
    jobs = platform.accept(*(platform.create() for _ in range(30)))
    capacity = _capacity(platform, jobs=10)
    platform.applier().apply(jobs[:10])
    capacity.read()
    assert capacity.drained_per_second > 0
    capacity.drained_per_second = 2.0
    assert _refusal(capacity).retry_after == 6  # 20 open, low water at 9.5, two a second
    capacity.drained_per_second = 0.001
    assert _refusal(capacity).retry_after == LONGEST_SECONDS


def test_ledger_that_cannot_be_read_is_in_nobodys_way(platform: Platform) -> None:
    platform.accept(*(platform.create() for _ in range(3)))
    capacity = _capacity(platform, jobs=1)
    _refusal(capacity)
    broken = type(platform.database)("postgresql+psycopg://x:y@127.0.0.1:1/z")
    capacity.database = broken
    capacity.read()
    capacity.admit(Priority.NORMAL)


# ---- over HTTP ---------------------------------------------------------------------------


@pytest.fixture
def api(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    url = platform.settings.database_url
    with running_api(url, tmp_path_factory.mktemp("data"), max_open_jobs=5) as running:
        wait_until(lambda: running.container.capacity._backlog is not None, what="the first reading")
        yield running


def _create(api: Api, **request: Any) -> Answer:
    return api.request("POST", ENTITIES, json_body={"name": "a"}, **request)


def test_full_ledger_is_503_until_it_drains_and_reads_and_cancels_pass(api: Api) -> None:
    answers = [_create(api) for _ in range(6)]
    assert [one.status for one in answers] == [202] * 5 + [503]
    refused = answers[-1]
    assert refused.json["error"] == "Unavailable"
    assert int(refused.headers["retry-after"]) == refused.json["retryAfter"] >= 1
    assert api.request("POST", "/api/v1/bulk", json_body={"operations": []}).status == 503
    assert _create(api, headers={"Waybill-Priority": "high"}).status == 202
    assert api.request("GET", ENTITIES).status == 200
    first = answers[0].json["id"]
    assert api.request("POST", f"/api/v1/jobs/{first}/cancel").status == 200
    api.apply(*(one.json["id"] for one in answers[1:5]))
    wait_until(lambda: _create(api).status == 202, timeout_seconds=60, what="room again")


def test_bulk_takes_the_room_of_all_that_is_in_it(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity_module, "_SHORTEST_REST_SECONDS", 60.0)
    monkeypatch.setattr(capacity_module, "_LONGEST_REST_SECONDS", 60.0)
    with running_api(platform.settings.database_url, tmp_path, max_open_jobs=5) as api:
        wait_until(lambda: api.container.capacity._backlog is not None, what="the only reading")
        one = {"operation": "create", "resource": "entities", "data": {"name": "a"}}
        bulk = {"operations": [one] * 5}
        assert api.request("POST", "/api/v1/bulk", json_body=bulk).status == 202
        assert _create(api).status == 503
