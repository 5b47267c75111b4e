"""The embedded platform as a newcomer meets it: paste, restart, kill -9, stop."""

import os
import re
import signal
import subprocess
import threading
import time

import psutil
import urllib3

from deploy.data_directory import DataDirectory
from tests.e2e.conftest import ADMIN, Platform, generated_password
from tests.kit.client import Client
from tests.kit.launched import MOST_SECONDS_TO_STOP, Launched, ended, launched_whole
from tests.kit.waiting import wait_until


def _pids(up: Launched) -> set[int]:
    """Everything that ``processes.json`` names, and their children."""
    named = {pid for pids in up.processes().values() for pid in (pids if isinstance(pids, list) else [pids])}
    children = {child.pid for pid in named for child in psutil.Process(pid).children(recursive=True)}
    return named | children


def test_printed_lines_pasted_into_a_shell_end_in_a_succeeded_job(embedded: Platform) -> None:
    lines = re.findall(r"^(?:TOKEN=|JOB=|until ).*$", embedded.up.said(), re.MULTILINE)
    assert len(lines) == 3

    shell = subprocess.run(
        ["bash", "-c", "\n".join(lines)], capture_output=True, text=True, timeout=60, check=True
    )

    job_id, job = shell.stdout.strip().split("\n")
    assert job_id in job
    assert re.search(r'"state": *"succeeded"', job)
    assert embedded.client.job(job_id)["result"]["name"] == "hello"


def test_restart_finds_data_and_honours_tokens_and_the_stop_leaves_nothing(directory: DataDirectory) -> None:
    with launched_whole(directory) as first:
        first.wait_ready()
        client = Client(f"http://127.0.0.1:{first.api_port}")
        token = client.log_in("admin@waybill.local", generated_password(first))
        entity = client.outcome("POST", "entities", {"name": "kept"}).json
        later = client.call(
            "POST", "entities", {"name": "later"}, {"Waybill-Run-At": "2099-01-01T00:00:00Z"}
        ).json
        pids = _pids(first)
        began = time.monotonic()
        assert first.stop() == 0
        assert time.monotonic() - began < MOST_SECONDS_TO_STOP
        assert [pid for pid in pids if not ended(pid)] == []
    with launched_whole(directory) as second:
        second.wait_ready()
        assert "password: shown at the first start" in second.said()
        client = Client(f"http://127.0.0.1:{second.api_port}", token)
        assert client.call("GET", f"entities/{entity['id']}").json == entity
        assert client.job(later["id"])["state"] == "scheduled"
        assert second.stop() == 0


def test_what_was_accepted_outlives_a_killed_node(embedded: Platform) -> None:
    accepted: list[str] = []
    refused = threading.Event()

    def submit() -> None:
        client = Client(embedded.client.url, embedded.client.token)
        while not refused.is_set():
            try:
                answer = client.call("POST", "entities", {"name": "survivor"})
            except Exception:  # the node is gone
                refused.set()
                return
            if answer.status == 202:
                accepted.append(answer.json["id"])

    threads = [threading.Thread(target=submit, daemon=True) for _ in range(8)]
    (node,) = embedded.up.processes()["api"]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(accepted) >= 200, timeout_seconds=30, what="200 accepted jobs")
    os.kill(node, signal.SIGKILL)
    assert refused.wait(10)
    for thread in threads:
        thread.join(10)

    wait_until(
        lambda: embedded.up.processes()["api"] not in ([], [node]), timeout_seconds=90, what="a new node"
    )
    wait_until(lambda: _is_ready(embedded.client), timeout_seconds=60, what="the new node is ready")
    states = {embedded.client.done(job_id)["state"] for job_id in accepted}
    assert states == {"succeeded"}


def test_worker_that_is_shut_down_from_flower_comes_back(embedded: Platform) -> None:
    (node,) = embedded.up.processes()["api"]
    headers = urllib3.make_headers(basic_auth=f"{ADMIN}:{embedded.password}")
    shutdown = f"{embedded.flower}/api/worker/shutdown/waybill@embedded"
    wait_until(
        lambda: urllib3.request("POST", shutdown, headers=headers, retries=False).status == 200,
        timeout_seconds=30,
        every_seconds=0.5,
        what="Flower knows the worker",
    )

    wait_until(
        lambda: embedded.up.processes()["api"] not in ([], [node]), timeout_seconds=90, what="a new node"
    )

    wait_until(lambda: _is_ready(embedded.client), timeout_seconds=60, what="the new node is ready")
    assert embedded.client.outcome("POST", "entities", {"name": "after"}).status == 201


def test_documents_page_names_every_route(embedded: Platform) -> None:
    page = embedded.client.call("GET", "/docs")

    assert page.status == 200
    for path in embedded.client.call("GET", "/openapi.json").json["paths"]:
        assert path in page.body.decode(), path


def _is_ready(client: Client) -> bool:
    try:
        return client.call("GET", "/health/ready").status == 200
    except Exception:
        return False
