"""The README's dead letter, found, explained, edited, foreseen, redriven, resolved, as readers paste it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.rabbitmq_server import find_rabbitmq
from deploy.redis_server import find_redis
from tests.e2e.conftest import CHECKOUT, PASSWORD, data_directory
from tests.kit import readme
from tests.kit.launched import Launched, launched_whole
from tests.kit.servers import require

SECTION = "A dead letter, from found to resolved"
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    """``waybill up --full`` with the README's parcels."""
    require(find_rabbitmq)
    require(find_redis)
    folder = tmp_path_factory.mktemp("parcels")
    (block,) = readme.blocks(readme.section(SECTION), "python")
    (folder / "parcels.py").write_text(block)
    settings = {
        "PYTHONPATH": f"{folder}{os.pathsep}{CHECKOUT}",
        "WAYBILL_RESOURCES": "parcels",
        "WAYBILL_ADMIN_PASSWORD": PASSWORD,
    }
    with data_directory() as directory, launched_whole(directory, "--full", **settings) as running:
        running.wait_ready()
        yield running


@pytest.fixture(scope="module")
def said(up: Launched, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What each block of the section printed, after the one that starts the platform."""
    log_in = readme.blocks(readme.section("A tour"), "sh")[0]
    blocks = readme.blocks(readme.section(SECTION), "sh")[1:]
    script = "\necho; echo ======\n".join(["set -euo pipefail", log_in, *blocks])
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    shell = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path_factory.mktemp("shell"),
        env={**up.environment, "PATH": path, "WAYBILL_ADMIN_PASSWORD": PASSWORD},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert shell.returncode == 0, shell.stdout + shell.stderr
    printed = shell.stdout.split("======\n")[2:]
    assert len(printed) == len(blocks)
    return printed


def _found(printed: str, *texts: str) -> None:
    for text in texts:
        assert text in printed, f"{text} is not in {printed}"


def test_dead_letter_is_found_in_its_group(said: list[str]) -> None:
    _found(said[1], '"count":1', '"reason":"ZeroDivisionError"', '"state":"dead"')


def test_it_is_explained(said: list[str]) -> None:
    _found(said[2], "It is dead (ZeroDivisionError)", '"attempt":1', '"attempt":2', '"alive":1')


def test_it_is_foreseen_as_it_is_and_edited(said: list[str]) -> None:
    _found(said[3], '"outcome":"dead"', '"outcome":"succeeded"')


def test_it_is_redriven_once_and_resolved(said: list[str]) -> None:
    _found(said[4], '"generation":2', '"pieces":2', '"status":409')
    _found(said[4], "parcels.create.resolved", '"resolution":"redriven"')
