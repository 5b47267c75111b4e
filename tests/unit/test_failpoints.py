"""Failpoints: empty where the tests' variable is unset; where it is set, one process dies at an armed one."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from models import failpoints
from models.failpoints import Step, points
from tests.chaos import crashes

CHECKOUT = Path(__file__).parents[2]
ROOMS = ("models", "tasks", "consumers", "api_shim")
READS = {"tasks/applier.py"}
"""Whose one transaction without a step only looks at the head of a lane, under its lock."""


def _reaching(code: str, folder: Path | str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", f"from models import failpoints\nfrom models.failpoints import Step\n{code}"],
        env={"PYTHONPATH": str(CHECKOUT), failpoints.VARIABLE: str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_they_are_empty_where_the_variable_is_unset() -> None:
    assert os.environ.get(failpoints.VARIABLE) is None
    assert not failpoints.IS_COMPILED_IN
    for function in (failpoints.before, failpoints.after):
        assert function.__code__.co_names == ()  # it asks and calls nothing


def test_who_comes_to_an_armed_one_kills_itself_and_takes_it_away(tmp_path: Path) -> None:
    (tmp_path / "after-apply").touch()

    first, second = (
        _reaching("failpoints.before(Step.APPLY); failpoints.after(Step.APPLY); print('alive')", tmp_path)
        for _ in range(2)
    )

    assert (first.returncode, first.stdout) == (-signal.SIGKILL, "")
    assert (second.returncode, second.stdout) == (0, "alive\n")
    assert not (tmp_path / "after-apply").exists()


def test_of_many_who_come_at_once_one_dies(tmp_path: Path) -> None:
    (tmp_path / "before-claim").touch()
    code = (
        "import os\n"
        "pids = []\n"
        "for _ in range(8):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        failpoints.before(Step.CLAIM)\n"
        "        os._exit(0)\n"
        "    pids.append(pid)\n"
        "print(sorted(os.waitpid(pid, 0)[1] for pid in pids))"
    )

    assert _reaching(code, tmp_path).stdout == f"{[0] * 7 + [signal.SIGKILL.value]}\n"


def test_an_unknown_one_is_an_error(tmp_path: Path) -> None:
    assert "'nowhere' is not a valid Step" in _reaching("failpoints.before('nowhere')", tmp_path).stderr


@pytest.mark.parametrize("step", Step)
def test_every_step_is_one_of_the_code(step: Step) -> None:
    sources = [path.read_text() for room in ROOMS for path in (CHECKOUT / room).rglob("*.py")]

    assert any(f"Step.{step.name}" in source for source in sources if "class Step(" not in source)


def test_every_commit_is_a_step() -> None:
    without = []
    for room in ROOMS:
        for path in sorted((CHECKOUT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                is_one = isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "transaction"
                if is_one and not node.args:
                    without.append(str(path.relative_to(CHECKOUT)))

    assert sorted(without) == sorted(READS)


def test_every_step_has_its_place_among_the_crashes() -> None:
    planned = [fault.target for one in crashes.singles(1) for fault in one[:1]]

    assert sorted(planned) == sorted(points())


def test_seed_replays_its_pairs() -> None:
    assert crashes.pairs(7, 20) == crashes.pairs(7, 20)
    assert crashes.pairs(7, 20) != crashes.pairs(8, 20)
