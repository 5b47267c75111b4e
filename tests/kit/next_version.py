"""The next version of this program: a copy of the checkout in a folder, changed as a release changes it.

It says another version, knows two more migrations (one expands, one contracts), has a column more in
``jobs``, and says something more with each announcement.
"""

import shutil
from pathlib import Path

from tests.kit.migrations import HEAD, write_migration

CHECKOUT = Path(__file__).parents[2]
VERSION = "77.0.0"
EXPAND, CONTRACT = "7701", "7702"
_ROOMS = ("models", "tasks", "consumers", "api_shim", "deploy")


def make_next_version(folder: Path) -> Path:
    """Write it into ``folder``; that is what ``PYTHONPATH`` has to name."""
    for room in _ROOMS:
        shutil.copytree(CHECKOUT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    told = folder / f"waybill-{VERSION}.dist-info"
    told.mkdir()
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: waybill\nVersion: {VERSION}\n")
    migrations = folder / "models/migrations/versions"
    write_migration(
        migrations,
        EXPAND,
        'op.execute("ALTER TABLE jobs ADD COLUMN novelty text")\n'
        'op.execute("CREATE TABLE novelties (id uuid PRIMARY KEY, said text)")\n'
        'build_index("idx_jobs_novelty", "jobs", ["novelty"], where="novelty IS NOT NULL")',
        after=HEAD,
    )
    write_migration(
        migrations,
        CONTRACT,
        'op.execute("ALTER TABLE jobs ALTER COLUMN request_id TYPE text")',
        after=EXPAND,
        kind="contract",
    )
    _change(
        folder / "models/tables.py",
        '    CheckConstraint(_one_of("state", JobState), name="state"),\n',
        '    Column("novelty", Text),\n    CheckConstraint(_one_of("state", JobState), name="state"),\n',
    )
    _change(
        folder / "tasks/publisher.py",
        "                args=(",
        '                kwargs={"novelty": 1}, args=(',
    )
    return folder


def _change(file: Path, before: str, after: str) -> None:
    text = file.read_text()
    assert text.count(before) == 1, f"{file.name} has changed: {before!r}"
    file.write_text(text.replace(before, after))
