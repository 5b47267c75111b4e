"""Flower in both modes: closed without the admin's password; with it, workers, tasks and queues."""

import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest
import urllib3

from models.identity.login_guard import FREE_FAILURES
from tasks.names import ALL_QUEUES, DEAD_INTAKE, DEAD_MESSAGES, EXPIRED_INTAKE, INTAKE
from tests.e2e.conftest import ADMIN, Platform
from tests.kit.waiting import wait_until

WORKERS = {
    "embedded": {"waybill"},
    "full": {"worker", "worker-high", "worker-bulk", "worker-deliveries"},
}
QUEUES = {
    "embedded": ALL_QUEUES,
    "full": (*ALL_QUEUES, INTAKE, DEAD_INTAKE, EXPIRED_INTAKE, DEAD_MESSAGES),
}
BROWSER = ("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run")
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync")


@pytest.fixture(scope="module", params=["embedded", "full"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def platform(mode: str, request: pytest.FixtureRequest) -> Platform:
    platform: Platform = request.getfixturevalue(mode)
    assert platform.client.outcome("POST", "entities", {"name": "for Flower"}).status == 201
    return platform


def _get(platform: Platform, path: str, credentials: str | None = None) -> urllib3.BaseHTTPResponse:
    headers = urllib3.make_headers(basic_auth=credentials) if credentials else {}
    return urllib3.request("GET", platform.flower + path, headers=headers, retries=False, timeout=20)


def _as_admin(platform: Platform, path: str) -> urllib3.BaseHTTPResponse:
    answer = _get(platform, path, f"{ADMIN}:{platform.password}")
    assert answer.status == 200, (path, answer.status)
    return answer


@pytest.mark.parametrize("path", ["/", "/workers", "/tasks", "/broker", "/api/workers", "/metrics"])
def test_nobody_enters_without_the_admins_password(platform: Platform, path: str) -> None:
    nobody = f"nobody{path.replace('/', '-')}@waybill.local"
    for credentials in (None, f"{nobody}:{platform.password}"):
        assert _get(platform, path, credentials).status == 401, credentials


@pytest.mark.parametrize("password", ["", "wrong"])
def test_wrong_password_does_not_open(platform: Platform, password: str) -> None:
    assert _get(platform, "/workers", f"{ADMIN}:{password}").status == 401
    _as_admin(platform, "/workers?json=1")


def test_who_guesses_waits(platform: Platform) -> None:
    credentials = (f"somebody@waybill.local:guess-{count}" for count in range(FREE_FAILURES + 6))
    guesses = [_get(platform, "/", one) for one in credentials]
    assert [guess.status for guess in guesses[: FREE_FAILURES + 1]] == [401] * (FREE_FAILURES + 1)
    waits = [int(guess.headers["Retry-After"]) for guess in guesses if guess.status == 429]
    assert waits
    assert min(waits) >= 1


def test_workers_are_listed_as_online(platform: Platform, mode: str) -> None:
    def online() -> set[str]:
        workers = _as_admin(platform, "/workers?json=1").json()["data"]
        return {worker["hostname"].partition("@")[0] for worker in workers if worker["status"]}

    wait_until(lambda: online() == WORKERS[mode], timeout_seconds=60, what="all workers are online")
    hosts = {
        worker["hostname"].partition("@")[2]
        for worker in _as_admin(platform, "/workers?json=1").json()["data"]
    }
    assert all(host and "%" not in host for host in hosts)


def test_workers_can_be_asked_and_controlled_by_api(platform: Platform, mode: str) -> None:
    def known() -> set[str]:
        return {name.partition("@")[0] for name in _as_admin(platform, "/api/workers").json()}

    wait_until(lambda: known() == WORKERS[mode], timeout_seconds=60, what="Flower has met all workers")


def test_worker_page_names_its_queues(platform: Platform) -> None:
    workers = _as_admin(platform, "/workers?json=1").json()["data"]
    (name,) = [one["hostname"] for one in workers if one["hostname"].startswith(("waybill@", "worker@"))]

    def page() -> str:
        return _as_admin(platform, f"/worker/{quote(name)}").data.decode()

    wait_until(lambda: "waybill.jobs" in page(), timeout_seconds=60, what="its queues are named")


def test_tasks_of_both_kinds_are_listed(platform: Platform, mode: str) -> None:
    expected = {"waybill.apply", "waybill.deliver"} if mode == "full" else {"waybill.apply"}

    def listed() -> set[str]:
        tasks = _as_admin(platform, "/api/tasks?limit=1000").json().values()
        return {task["name"] for task in tasks if task["state"] == "SUCCESS"}

    wait_until(lambda: listed() >= expected, timeout_seconds=60, what=f"{expected} are listed")


def test_broker_page_lists_our_queues(platform: Platform, mode: str) -> None:
    def missing() -> list[str]:
        page = _as_admin(platform, "/broker").data.decode()
        return [queue for queue in QUEUES[mode] if f"<td>{queue}</td>" not in page]

    wait_until(lambda: missing() == [], timeout_seconds=60, what=f"{QUEUES[mode]} are listed")


def test_browser_shows_the_tasks(platform: Platform, tmp_path: Path) -> None:
    if shutil.which(BROWSER[0]) is None:
        pytest.skip("THERE IS NO chromium TO LOOK WITH")
    url = f"{platform.flower}/tasks".replace("://", f"://{quote(ADMIN)}:{quote(platform.password)}@")

    shown = subprocess.run(
        [*BROWSER, *QUIET, f"--user-data-dir={tmp_path}", "--virtual-time-budget=5000", "--dump-dom", url],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout

    assert "waybill.apply" in shown
    assert "SUCCESS" in shown
