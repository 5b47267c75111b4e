"""The README's tour, pasted into one shell beside the running platform."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import PASSWORD, Platform
from tests.kit import readme
from tests.kit.receiver import WebhookReceiver


@pytest.fixture(scope="module")
def receiver() -> Iterator[WebhookReceiver]:
    with WebhookReceiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def said(full: Platform, receiver: WebhookReceiver, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the shell printed, one string for each block."""
    blocks = readme.blocks(readme.section("A tour"), "sh")
    script = "\necho; echo ======\n".join(["set -euo pipefail", *blocks])
    script = script.replace("https://receiver.example/hook", receiver.url()).replace(".venv/bin/", "")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    shell = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path_factory.mktemp("tour"),
        env={**full.up.environment, "PATH": path, "WAYBILL_ADMIN_PASSWORD": PASSWORD},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert shell.returncode == 0, shell.stdout + shell.stderr
    printed = shell.stdout.split("======\n")[1:]
    assert len(printed) == len(blocks)
    return printed


def _found(printed: str, *texts: str) -> None:
    compact = printed.replace('": ', '":')
    for text in texts:
        assert text in compact, f"{text} is not in {printed}"


def test_writes_are_jobs_and_repeated_keys_are_one(said: list[str]) -> None:
    _found(said[1], '"state":"queued"', '"name":"crate"', '"kg":12')


def test_versions_guard_changes(said: list[str]) -> None:
    _found(said[2], '"status":"ACTIVE"', '"status":412', '"currentVersion":2', '"status":409', '"items":[{')


def test_polls_end_in_the_outcome(said: list[str]) -> None:
    _found(said[3], '"state":"succeeded"', '"description":"heavy"')


def test_scheduled_job_is_withdrawn_and_the_entity_deleted(said: list[str]) -> None:
    _found(said[4], '"state":"cancelled"', '"status":409', "204")


def test_session_goes_on_and_ends(said: list[str]) -> None:
    _found(said[5], "moment ago", "204")


def test_second_factor_is_asked_for(said: list[str]) -> None:
    _found(said[6], "204", "second factor is needed", "Bearer", "no second factor now")


def test_callback_arrives_signed(said: list[str], receiver: WebhookReceiver) -> None:
    secret = next(line for line in said[7].splitlines() if line.startswith("whsec_"))

    received = receiver.wait_for(1, timeout_seconds=30)[0].verify(secret)

    assert received["type"] == "job.succeeded"
    assert received["data"]["id"] in said[7]


def test_streams_tell_every_transition(said: list[str]) -> None:
    _found(said[9], "retry: ", '"state":"succeeded"')
    assert said[9].count("data: ") >= 2
    _found(said[10], "queued", "succeeded")


def test_upstream_message_is_answered(said: list[str]) -> None:
    _found(said[8], "job.accepted", "job.succeeded")


def test_bulk_is_taken_in_by_its_operations_and_once(said: list[str]) -> None:
    _found(
        said[11], '"name":"pallet"', '"status":"ACTIVE"', '{"index":2,"error":{', "idempotent-replayed: true"
    )
    assert said[11].replace('": ', '":').count('"state":"succeeded"') == 3
