"""Where breakers are shown: what explain says of third parties, names in /metrics, findings of the doctor."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from api_shim.routes import metrics
from deploy import doctor
from deploy.doctor import Finding, examine
from models.breaker import FIRST_REST, LONGEST_REST, THRESHOLD, BreakerBoard
from models.identity.principals import Role
from tests.kit import parcels
from tests.kit.api import Api, running_api

PARCELS, JOBS = "/api/v1/parcels", "/api/v1/jobs"
CARRIER, OFFICE, WAREHOUSE = "service:carrier", "service:office", "service:warehouse"
HOST = "hooks.example.com:443"


@pytest.fixture(scope="module")
def module_api(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API that serves parcels, whose effects call third parties."""
    data_dir: Path = tmp_path_factory.mktemp("data")
    with running_api(database_url, data_dir, resources=("tests.kit.parcels",)) as running:
        with running.container.database.transaction() as connection:
            parcels.TABLE.create(connection, checkfirst=True)
        yield running


@pytest.fixture
def api(module_api: Api) -> Api:
    for table in ("jobs", "job_events", "deliveries", "breakers"):
        rows(module_api, f"DELETE FROM {table}")  # noqa: S608
    return module_api


def rows(api: Api, query: str, **parameters: Any) -> list[Any]:
    with api.container.database.transaction() as connection:
        result = connection.execute(text(query), parameters)
        return list(result.all()) if result.returns_rows else []


def open_breaker(api: Api, dependency: str, ago: timedelta = timedelta(0)) -> None:
    """Five failures in a row, the last of them some time ago."""
    with api.container.database.transaction() as connection:
        for _ in range(THRESHOLD):
            BreakerBoard(connection).record_failure(dependency, datetime.now(UTC) - ago)


def submit(api: Api, method: str = "POST", path: str = PARCELS) -> Any:
    answer = api.request(method, path, json_body={"label": "glass"} if method == "POST" else None)
    assert answer.status == 202, answer.body
    return answer.json


def shipped(api: Api) -> Any:
    """A parcel that was made: its effect waits."""
    job = submit(api)
    api.apply(job["id"])
    return job


def breakers_of(api: Api, job: Any, role: Role = Role.USER) -> dict[str, Any]:
    answer = api.request("GET", f"{JOBS}/{job['id']}/explain", role=role)
    assert answer.status == 200, answer.body
    return {one["dependency"]: one for one in answer.json["breakers"]}


# ---- explain -----------------------------------------------------------------------------


def test_open_job_shows_the_third_party_that_it_will_call_and_its_next_probe(api: Api) -> None:
    job = submit(api)
    assert breakers_of(api, job) == {
        CARRIER: {"dependency": CARRIER, "state": "closed", "failures": 0, "nextProbe": None}
    }
    open_breaker(api, CARRIER)
    told = breakers_of(api, job)[CARRIER]
    assert (told["state"], told["failures"]) == ("open", THRESHOLD)
    assert datetime.fromisoformat(told["nextProbe"]) > datetime.now(UTC)


def test_another_operation_shows_only_its_own_third_parties(api: Api) -> None:
    made = shipped(api)
    deletion = submit(api, "DELETE", f"{PARCELS}/{made['resourceId']}")
    assert set(breakers_of(api, deletion)) == {WAREHOUSE}


def test_job_of_a_resource_without_effects_shows_none(api: Api) -> None:
    answer = api.request("POST", "/api/v1/entities", json_body={"name": "Ada"})
    open_breaker(api, CARRIER)
    assert breakers_of(api, answer.json) == {}


def test_done_job_shows_whom_its_effects_wait_for_until_they_are_settled(api: Api) -> None:
    job = shipped(api)
    open_breaker(api, CARRIER)
    assert breakers_of(api, job)[CARRIER]["state"] == "open"
    rows(api, "UPDATE deliveries SET state = 'failed', announce_at = NULL WHERE kind = 'effect'")
    assert breakers_of(api, job) == {}


def test_fallback_is_shown_once_it_is_written(api: Api) -> None:
    job = shipped(api)
    assert set(breakers_of(api, job)) == {CARRIER}
    rows(api, "UPDATE deliveries SET target = 'complain' WHERE kind = 'effect'")
    assert set(breakers_of(api, job)) == {OFFICE}


def test_effect_that_is_declared_no_more_is_passed_over(api: Api) -> None:
    job = shipped(api)
    rows(api, "UPDATE deliveries SET target = 'forgotten' WHERE kind = 'effect'")
    assert breakers_of(api, job) == {}


def test_who_may_do_nothing_with_the_resource_learns_of_no_third_party(api: Api) -> None:
    job = submit(api)
    rows(api, "UPDATE jobs SET principal_id = :guest", guest=api.users[Role.GUEST].id)
    assert breakers_of(api, job, Role.GUEST) == {}
    assert set(breakers_of(api, job, Role.ADMIN)) == {CARRIER}


# ---- metrics -----------------------------------------------------------------------------


def measured(api: Api, name: str) -> dict[str, float]:
    exposed = api.request("GET", "/metrics", role=None).body.decode()
    found = re.findall(rf'^{name}{{dependency="(.+)"}} (\S+)$', exposed, re.MULTILINE)
    return {dependency: float(value) for dependency, value in found}


def test_metrics_name_breakers_that_are_not_closed_and_when_they_are_probed(api: Api) -> None:
    open_breaker(api, CARRIER)
    open_breaker(api, HOST, ago=FIRST_REST)
    with api.container.database.transaction() as connection:
        BreakerBoard(connection).record_failure("well.example.com:443", datetime.now(UTC))
    assert measured(api, "waybill_breaker_open") == {CARRIER: 1, HOST: 0}
    probes = measured(api, "waybill_breaker_probe_seconds")
    assert probes[HOST] == 0
    assert 0 < probes[CARRIER] <= FIRST_REST.total_seconds()


def test_metrics_count_all_and_name_third_parties_before_hosts_of_users(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MOST_BREAKERS", 2)
    open_breaker(api, CARRIER, ago=LONGEST_REST)
    for host in ("service:443", "service:8443", HOST):
        open_breaker(api, host)
    open_breaker(api, "gone.example.com:443", ago=LONGEST_REST)
    named = measured(api, "waybill_breaker_open")
    assert len(named) == 2
    assert CARRIER in named
    assert "gone.example.com:443" not in named
    assert "\nwaybill_breakers_open 5.0" in api.request("GET", "/metrics", role=None).body.decode()


# ---- doctor ------------------------------------------------------------------------------


def findings(api: Api) -> list[Finding]:
    return [one for one in examine(api.container.settings) if one.part == "breakers"]


def test_doctor_says_in_one_line_that_all_are_closed(api: Api) -> None:
    assert findings(api) == [Finding("breakers", True, "all closed")]


def test_doctor_names_an_open_breaker_its_next_probe_and_what_to_do(api: Api) -> None:
    open_breaker(api, HOST)
    open_breaker(api, CARRIER)
    third_party, host = findings(api)
    ((probe_at,),) = rows(api, "SELECT probe_at FROM breakers WHERE dependency = :d", d=CARRIER)
    told = probe_at.astimezone(UTC).isoformat(timespec="seconds")
    assert third_party.detail == f"{CARRIER} is open after {THRESHOLD} failures, next probe at {told}"
    assert "WAYBILL_SERVICES" in third_party.remedy
    assert host.detail.startswith(f"{HOST} is open")
    assert [third_party.is_well, host.is_well] == [False, True], "an endpoint is its owner's affair"


def test_doctor_finds_nothing_wrong_with_a_host_to_which_nothing_is_sent_any_more(api: Api) -> None:
    open_breaker(api, HOST, ago=timedelta(days=30))
    (finding,) = findings(api)
    assert finding.is_well
    assert finding.detail.startswith(f"{HOST} is half-open")


def test_doctor_names_so_many_and_counts_the_others(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_MOST_BREAKERS", 1)
    for dependency in (HOST, "other.example.com:443", CARRIER):
        open_breaker(api, dependency)
    first, rest = findings(api)
    assert first.detail.startswith(CARRIER)
    assert rest.detail.startswith("2 more")
