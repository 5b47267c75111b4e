"""Failpoints at a real commit: before it everything is lost, after it nothing; a mere read has none."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from models import failpoints
from tests.kit.platform import Platform, running_platform

CHECKOUT = Path(__file__).parents[2]
CODE = """
import sys
from sqlalchemy import text
from models.database import Database
from models.failpoints import Step

with Database(sys.argv[1]).transaction(Step.APPLY) as connection:
    connection.execute(text(sys.argv[2]))
"""
WRITE = "INSERT INTO breakers (dependency) VALUES ('a host')"


@pytest.fixture(scope="module")
def ledger(database_url: str) -> Iterator[Platform]:
    with running_platform(database_url) as platform:
        yield platform


@pytest.mark.parametrize(
    ("statement", "armed", "status", "rows"),
    [
        (WRITE, "before-apply", -signal.SIGKILL, 0),
        (WRITE, "after-apply", -signal.SIGKILL, 1),
        (WRITE, "before-accept", 0, 1),
        ("SELECT 1", "before-apply", 0, 0),
        ("SELECT 1", "after-apply", 0, 0),
    ],
)
def test_who_crashes_at_a_commit_has_committed_or_not(
    ledger: Platform, tmp_path: Path, statement: str, armed: str, status: int, rows: int
) -> None:
    ledger.rows("DELETE FROM breakers")
    (tmp_path / armed).touch()

    done = subprocess.run(
        [sys.executable, "-c", CODE, ledger.settings.database_url, statement],
        env={"PYTHONPATH": str(CHECKOUT), failpoints.VARIABLE: str(tmp_path)},
        check=False,
        timeout=120,
    )

    assert done.returncode == status
    assert ledger.rows("SELECT count(*) FROM breakers")[0][0] == rows
