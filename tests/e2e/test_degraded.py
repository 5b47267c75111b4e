"""The README's section on what is away, pasted into one shell beside a whole platform: a test a row."""

import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from deploy.ports import free_port
from deploy.rabbitmq_server import find_rabbitmq
from deploy.redis_server import find_redis
from tests.e2e.conftest import PASSWORD, data_directory
from tests.kit import readme
from tests.kit.launched import Launched, launched_whole
from tests.kit.servers import require

ALL_WELL = "ready: {'database': 'ok', 'broker': 'ok'}"
NO_BROKER = "ready: {'database': 'ok', 'broker': 'the broker does not answer'}"
AT_ONCE_SECONDS, FIRST_SECONDS = 1.0, 5.0
SHELL_SECONDS = 400
"""For all of it: two minutes on a quiet machine."""

pytestmark = pytest.mark.timeout(SHELL_SECONDS + 150)


@pytest.fixture(scope="module")
def up() -> Iterator[Launched]:
    """A platform whose servers may all be frozen and killed."""
    require(find_rabbitmq)
    require(find_redis)
    settings = {"WAYBILL_ADMIN_PASSWORD": PASSWORD, "WAYBILL_CALLBACK_ALLOW_PRIVATE": "1"}
    with data_directory() as directory, launched_whole(directory, "--full", is_quiet=True, **settings) as up:
        up.wait_ready()
        yield up


@pytest.fixture(scope="module")
def said(up: Launched, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the shell printed, one string for each block."""
    blocks = readme.blocks(readme.section("When something is away"), "sh")
    script = "\n".join([_BEGINNING, readme.blocks(readme.section("A tour"), "sh")[0]])
    script += "".join(f"\necho ======\n{block}" for block in blocks)
    script = script.replace("8098", str(free_port())).replace("8099", str(free_port()))
    room = tmp_path_factory.mktemp("degraded")
    output, errors = room / "output", room / "errors"
    with output.open("w") as to_output, errors.open("w") as to_errors:
        shell = subprocess.Popen(  # not by pipes: the receivers in its background would hold them open
            ["bash", "-c", script],
            cwd=room,
            env={**up.environment, "WAYBILL_ADMIN_PASSWORD": PASSWORD, "PATH": _path()},
            stdout=to_output,
            stderr=to_errors,
        )
    try:
        status = shell.wait(SHELL_SECONDS)
    except subprocess.TimeoutExpired:
        shell.terminate()
        status = shell.wait(10)
    assert status == 0, output.read_text() + errors.read_text()
    printed = output.read_text().split("======\n")[1:]
    assert len(printed) == len(blocks)
    return printed


_BEGINNING = "set -euo pipefail; trap 'kill -9 $(jobs -p) 2>/dev/null || true' EXIT; trap 'exit 1' TERM"


def _path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def _looks(printed: str) -> list[tuple[dict[str, int], list[float], str]]:
    """Each look around: the status of every door, the seconds that they took, what ready said."""
    looks = []
    for found in re.finditer(r"((?:^\w+: \d+ after [\d.]+ s\n){3})(^ready: .*$)", printed, re.MULTILINE):
        doors = re.findall(r"(\w+): (\d+) after ([\d.]+) s", found[1])
        looks.append(
            ({name: int(status) for name, status, _ in doors}, [float(door[2]) for door in doors], found[2])
        )
    return looks


def _as_a_rule_at_once(looks: list[list[float]]) -> bool:
    """By each door's median: a look may meet a stall of the machine; a wait of ours is met by each."""
    return all(_is_usually_short(door) for door in zip(*looks, strict=True))


def _is_usually_short(seconds: Sequence[float]) -> bool:
    return statistics.median(seconds) < AT_ONCE_SECONDS and max(seconds) < FIRST_SECONDS


TAKEN = {"submit": 202, "poll": 200, "read": 200}


def test_platform_is_well(said: list[str]) -> None:
    ((doors, _, ready),) = _looks(said[0])
    assert (doors, ready) == (TAKEN, ALL_WELL)


def test_redis_away_is_noticed_by_nobody(said: list[str]) -> None:
    looks = _looks(said[1])
    assert [(doors, ready) for doors, _, ready in looks] == [(TAKEN, ALL_WELL)] * 5
    _, *silent, killed = [seconds for _, seconds, _ in looks]
    assert _as_a_rule_at_once(silent), "only the first waits for a silent Redis"
    assert _is_usually_short(killed)
    assert said[1].count("back: ") == 2


def test_broker_away_leaves_all_doors_open_and_callbacks_go_out(said: list[str]) -> None:
    looks = _looks(said[2])
    assert [(doors, ready) for doors, _, ready in looks] == [(TAKEN, NO_BROKER)] * 4
    *silent, killed = [seconds for _, seconds, _ in looks]
    assert _as_a_rule_at_once(silent)
    assert _is_usually_short(killed)
    assert '"type":"job.cancelled"' in said[2]
    assert "\nsucceeded\n" in said[2], "what was accepted meanwhile is applied"
    assert said[2].count("back: ") == 2


def test_database_away_is_503_at_once_and_the_intake_acknowledges_nothing(said: list[str]) -> None:
    looks = _looks(said[3])
    assert [doors for doors, _, _ in looks] == [{"submit": 503, "poll": 503, "read": 200}] * 5
    first, *later, killed = [seconds for _, seconds, _ in looks]
    assert max(first) < FIRST_SECONDS
    assert _as_a_rule_at_once(later)
    assert _is_usually_short(killed)
    assert all("the database is away" in ready for _, _, ready in looks[1:4])
    assert re.search(r"^HTTP/1.1 503.*\n+retry-after: 1", said[3], re.MULTILINE | re.IGNORECASE)
    assert re.findall(r"^waybill_database_away (\S+)", said[3], re.MULTILINE) == ["1.0", "0.0"]
    assert re.search(r'"routed":true}\n1\n1\n', said[3]), "the message stays, unacknowledged"
    assert "taken in" in said[3]
    seconds = [int(one) for one in re.findall(r"jobs are applied (\d+) s later", said[3])]
    assert len(seconds) == 2
    assert max(seconds) < 60  # a second or two where the machine has nothing else to do


def test_receiver_away_holds_up_nobody_else(said: list[str]) -> None:
    assert said[4].count('"type":"job.succeeded"') == 2
    assert '"state":"pending"' in said[4] or '"state":"retrying"' in said[4]


def test_killed_processes_are_started_again_and_what_they_held_is_done(said: list[str]) -> None:
    printed = said[5]
    assert re.search(r"^submit: 202 after", printed, re.MULTILINE)
    assert "\nsucceeded\n" in printed
    assert "\n2\n" in printed
    assert ALL_WELL in printed
    assert printed.count("back: ") == 2


def test_nothing_that_was_told_to_callers_is_hidden_from_operators(said: list[str], up: Launched) -> None:
    assert said
    assert '"message": "the database is away"' in up.said()
    assert '"message": "the database is back"' in up.said()
    assert '"level": "ERROR"' not in up.said().split("Ready.")[0]
