"""Migrations for tests: written into a folder, on top of the built-in ones. They run nothing."""

from pathlib import Path

from models.revisions import known_revisions

HEAD = known_revisions().heads[0]
"""The newest built-in one."""

_FILE = '''"""{title}."""

from alembic import op

from models.migrations.indexes import build_index

revision = "{revision}"
down_revision = "{after}"
depends_on = None
kind = "{kind}"
compatible_since = {since!r}


def upgrade() -> None:
    {upgrade}


def downgrade() -> None:
    pass
'''


def write_migration(
    folder: Path,
    revision: str,
    upgrade: str,
    *,
    after: str = HEAD,
    kind: str = "expand",
    since: str | None = None,
    title: str = "of a test",
) -> str:
    """Write a migration whose ``upgrade`` is one line of Python or more; its id."""
    folder.mkdir(parents=True, exist_ok=True)
    text = _FILE.format(
        revision=revision,
        after=after,
        kind=kind,
        since=since,
        title=title,
        upgrade=upgrade.replace("\n", "\n    "),
    )
    (folder / f"{revision}.py").write_text(text)
    return revision
