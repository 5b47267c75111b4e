"""This machine's own PostgreSQL for tests of what the wheel's lacks: contrib, ICU, the oldest version."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

from deploy.account import Account
from deploy.data_directory import DataDirectory
from deploy.postgres_home import PostgresHome
from deploy.postgres_server import PostgresServer
from models.errors import ConfigurationError
from tests.kit.servers import require, running, temporary_data_directory


class DebianPostgresServer(PostgresServer):
    """A cluster of its own, run by the binaries of Debian's package (version 15 on Debian 12).

    Args:
        directory: Prepared; the data is kept in it.
    """

    locale = ("--locale=C.UTF-8",)

    def __init__(self, directory: DataDirectory) -> None:
        super().__init__(directory)
        account = Account.unprivileged()
        room = directory.path / "postgres"
        room.mkdir(mode=0o700)
        account.own(room)
        self._home = PostgresHome(account, find_programs(), room)
        self._workplace = self._home.data

    def run_as_superuser(self, database: str, *statements: str) -> None:
        """Run statements that the role which owns the database may not."""
        with psycopg.connect(self._url("postgres", database), autocommit=True) as connection:
            for statement in statements:
                connection.execute(sql.SQL(statement))  # type: ignore[arg-type]


def find_programs() -> Path:
    """The folder of the newest version that is installed.

    Raises:
        ConfigurationError: None is.
    """
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    if not found:
        raise ConfigurationError("no PostgreSQL below /usr/lib/postgresql: apt-get install postgresql")
    return found[-1].parent


@contextmanager
def debian_postgres_server() -> Iterator[DebianPostgresServer]:
    """This machine's PostgreSQL, on data of its own."""
    require(find_programs)
    with temporary_data_directory() as directory, running(DebianPostgresServer(directory)) as server:
        yield server
